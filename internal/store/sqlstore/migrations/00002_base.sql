-- +goose Up

-- What a snapshot's files refer to, empty if they stand alone.
ALTER TABLE snapshots ADD COLUMN base TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE snapshots DROP COLUMN base;
