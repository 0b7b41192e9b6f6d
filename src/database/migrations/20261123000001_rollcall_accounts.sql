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

CREATE TABLE rollcall_refresh_tokens (
    -- SHA-256 of the token, in hexadecimal: who reads this table cannot sign in.
    digest TEXT PRIMARY KEY NOT NULL,
    account TEXT NOT NULL REFERENCES rollcall_accounts (id) ON DELETE CASCADE,
    -- The sign-in with a password that it comes from.
    login TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- When it was exchanged for another; none while it is good.
    used_at BIGINT
);

CREATE INDEX rollcall_refresh_tokens_login ON rollcall_refresh_tokens (account, login);
