-- Public keys that people may log in with at the SSH jumpbox.
create table ssh_keys (
    id uuid primary key,
    user_id uuid not null,
    name text not null,
    fingerprint text not null,
    algorithm text not null,
    public_key text not null,
    created_at bigint not null,
    last_used_at bigint,
    last_used_address text not null,
    unique (user_id, fingerprint),
    foreign key (user_id) references users (id) on delete cascade
);

-- The key that a session was begun with; the session goes with it.
alter table sessions add column ssh_key_id uuid references ssh_keys (id) on delete cascade;
create index sessions_ssh_key on sessions (ssh_key_id);
