-- +goose Up

-- A snapshot's owner, name and place in the line of its sandbox's snapshots.
ALTER TABLE snapshots ADD COLUMN sandbox TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN team TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN template TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN alias TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN tag TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN status TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN after TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshots ADD COLUMN resources_json TEXT NOT NULL DEFAULT '{}';
CREATE UNIQUE INDEX snapshots_name ON snapshots (team, alias, tag) WHERE alias <> '';
CREATE INDEX snapshots_team ON snapshots (team, created_at, id);
CREATE INDEX snapshots_sandbox ON snapshots (sandbox, created_at, id);
CREATE INDEX snapshots_after ON snapshots (after) WHERE after <> '';
CREATE INDEX snapshots_unfinished ON snapshots (status) WHERE status <> '';

ALTER TABLE sandboxes ADD COLUMN head TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN lifecycle_json TEXT NOT NULL DEFAULT '{}';
CREATE INDEX sandboxes_snapshot ON sandboxes (snapshot) WHERE snapshot <> '';
CREATE INDEX sandboxes_head ON sandboxes (head) WHERE head <> '';

-- +goose Down
DROP INDEX sandboxes_head;
DROP INDEX sandboxes_snapshot;
ALTER TABLE sandboxes DROP COLUMN lifecycle_json;
ALTER TABLE sandboxes DROP COLUMN head;
DROP INDEX snapshots_unfinished;
DROP INDEX snapshots_after;
DROP INDEX snapshots_sandbox;
DROP INDEX snapshots_team;
DROP INDEX snapshots_name;
ALTER TABLE snapshots DROP COLUMN resources_json;
ALTER TABLE snapshots DROP COLUMN after;
ALTER TABLE snapshots DROP COLUMN status;
ALTER TABLE snapshots DROP COLUMN kind;
ALTER TABLE snapshots DROP COLUMN tag;
ALTER TABLE snapshots DROP COLUMN alias;
ALTER TABLE snapshots DROP COLUMN template;
ALTER TABLE snapshots DROP COLUMN team;
ALTER TABLE snapshots DROP COLUMN sandbox;
