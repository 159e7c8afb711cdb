-- +goose Up

-- A step of a sandbox's history: its number, what ran, and why it could not be taken.
ALTER TABLE snapshots ADD COLUMN step INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshots ADD COLUMN label TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN reason TEXT NOT NULL DEFAULT '';
CREATE INDEX snapshots_steps ON snapshots (kind, created_at, id) WHERE kind = 'step';

-- +goose Down
DROP INDEX snapshots_steps;
ALTER TABLE snapshots DROP COLUMN reason;
ALTER TABLE snapshots DROP COLUMN label;
ALTER TABLE snapshots DROP COLUMN step;
