-- Accounts with an e-mail address and a password, and what keeps them signed in.
-- Times are seconds since 1970. The same statements for PostgreSQL and SQLite.
CREATE TABLE rollcall_accounts (
    id TEXT PRIMARY KEY NOT NULL,
    -- In lower case.
    email TEXT NOT NULL UNIQUE,
    -- Argon2id, as a PHC string.
    password TEXT NOT NULL,
    role TEXT NOT NULL,
    tier TEXT,
    created_at BIGINT NOT NULL
);

-- A sign-in with a password. When it ends, its refresh tokens end with it, and none can be added.
CREATE TABLE rollcall_logins (
    id TEXT PRIMARY KEY NOT NULL,
    account TEXT NOT NULL REFERENCES rollcall_accounts (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL
);

CREATE TABLE rollcall_refresh_tokens (
    -- SHA-256 of the token, in hexadecimal: who reads this table cannot sign in.
    digest TEXT PRIMARY KEY NOT NULL,
    login TEXT NOT NULL REFERENCES rollcall_logins (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    -- When it was first exchanged for another; none while it is good.
    used_at BIGINT,
    -- How often.
    uses BIGINT NOT NULL
);

CREATE INDEX rollcall_logins_account ON rollcall_logins (account);
CREATE INDEX rollcall_refresh_tokens_login ON rollcall_refresh_tokens (login);
