-- +goose Up

-- A build has a warm snapshot per driver, and says how a machine without one is
-- brought to the same point. All before this were gVisor's.
ALTER TABLE builds ADD COLUMN driver TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN warm_json TEXT NOT NULL DEFAULT 'null';
ALTER TABLE builds ADD COLUMN start_line TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN ready_line TEXT NOT NULL DEFAULT '';
UPDATE builds SET warm_json = '{"gvisor":"' || warm || '"}' WHERE warm <> '';
ALTER TABLE builds DROP COLUMN warm;

-- wanted is the driver that was asked for, driver and isolation what it runs on.
ALTER TABLE sandboxes ADD COLUMN wanted TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN driver TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN isolation TEXT NOT NULL DEFAULT '';
UPDATE sandboxes SET driver = 'gvisor', isolation = 'kernel';

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN isolation;
ALTER TABLE sandboxes DROP COLUMN driver;
ALTER TABLE sandboxes DROP COLUMN wanted;
ALTER TABLE builds ADD COLUMN warm TEXT NOT NULL DEFAULT '';
ALTER TABLE builds DROP COLUMN ready_line;
ALTER TABLE builds DROP COLUMN start_line;
ALTER TABLE builds DROP COLUMN warm_json;
ALTER TABLE builds DROP COLUMN driver;
