-- Settings of the project (name '') and of single channels, as JSON.
CREATE TABLE rollcall_settings (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    settings TEXT NOT NULL,
    PRIMARY KEY (scope, name)
);
