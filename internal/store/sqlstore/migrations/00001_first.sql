-- +goose Up

-- Times are Unix nanoseconds, 0 for "not set"; *_json columns hold one JSON value.
-- Every statement here and in the package runs on SQLite and PostgreSQL alike.

CREATE TABLE teams (
    id   TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE
);

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    team       TEXT NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    mask       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE templates (
    id         TEXT PRIMARY KEY,
    team       TEXT NOT NULL,
    public     BOOLEAN NOT NULL,
    build      TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX templates_list ON templates (team, created_at, id);

-- rank keeps the order in which the names were given.
CREATE TABLE template_aliases (
    team     TEXT NOT NULL,
    alias    TEXT NOT NULL,
    template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    rank     BIGINT NOT NULL,
    PRIMARY KEY (team, alias)
);
CREATE INDEX template_aliases_name ON template_aliases (alias);
CREATE INDEX template_aliases_template ON template_aliases (template);

CREATE TABLE builds (
    id             TEXT PRIMARY KEY,
    template       TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    status         TEXT NOT NULL,
    reason         TEXT NOT NULL,
    source         TEXT NOT NULL,
    resources_json TEXT NOT NULL,
    layers_json    TEXT NOT NULL,
    warm           TEXT NOT NULL,
    env_json       TEXT NOT NULL,
    username       TEXT NOT NULL,
    workdir        TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    finished_at    BIGINT NOT NULL
);
CREATE INDEX builds_list ON builds (template, created_at, id);

CREATE TABLE snapshots (
    id         TEXT PRIMARY KEY,
    build      TEXT NOT NULL,
    parent     TEXT NOT NULL,
    driver     TEXT NOT NULL,
    host_key   TEXT NOT NULL,
    memory     BOOLEAN NOT NULL,
    files_json TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX snapshots_list ON snapshots (created_at, id);

CREATE TABLE sandboxes (
    id             TEXT PRIMARY KEY,
    generation     BIGINT NOT NULL,
    launch         BIGINT NOT NULL,
    team           TEXT NOT NULL,
    template       TEXT NOT NULL,
    alias          TEXT NOT NULL,
    build          TEXT NOT NULL,
    node           TEXT NOT NULL,
    snapshot       TEXT NOT NULL,
    state          TEXT NOT NULL,
    stop_reason    TEXT NOT NULL,
    resources_json TEXT NOT NULL,
    network_json   TEXT NOT NULL,
    env_json       TEXT NOT NULL,
    metadata_json  TEXT NOT NULL,
    unsecured      BOOLEAN NOT NULL,
    on_timeout     TEXT NOT NULL,
    auto_resume    BOOLEAN NOT NULL,
    timeout        BIGINT NOT NULL,
    created_at     BIGINT NOT NULL,
    started_at     BIGINT NOT NULL,
    ends_at        BIGINT NOT NULL
);
-- Listings of what lives are in index order, however many rows have stopped.
CREATE INDEX sandboxes_team_live ON sandboxes (team, started_at, id) WHERE state <> 'stopped';
CREATE INDEX sandboxes_live ON sandboxes (started_at, id) WHERE state <> 'stopped';
CREATE INDEX sandboxes_state ON sandboxes (team, state);
CREATE INDEX sandboxes_due ON sandboxes (ends_at, id) WHERE state = 'running';
CREATE INDEX sandboxes_ended ON sandboxes (ends_at) WHERE state = 'stopped';

-- One row per pair, with the sort key of the listing, so that a page filtered
-- by metadata is read in index order too.
CREATE TABLE sandbox_metadata (
    sandbox    TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    PRIMARY KEY (sandbox, key)
);
CREATE INDEX sandbox_metadata_pair ON sandbox_metadata (key, value, started_at, sandbox);

-- +goose Down
DROP TABLE sandbox_metadata;
DROP TABLE sandboxes;
DROP TABLE snapshots;
DROP TABLE builds;
DROP TABLE template_aliases;
DROP TABLE templates;
DROP TABLE api_keys;
DROP TABLE teams;
