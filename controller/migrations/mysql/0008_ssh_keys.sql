-- Public keys that people may log in with at the SSH jumpbox.
create table ssh_keys (
    id binary(16) primary key,
    user_id binary(16) not null,
    name varchar(191) collate utf8mb4_bin not null,
    fingerprint varchar(191) collate utf8mb4_bin not null,
    algorithm varchar(191) collate utf8mb4_bin not null,
    public_key longtext not null,
    created_at bigint not null,
    last_used_at bigint,
    last_used_address longtext not null,
    unique (user_id, fingerprint),
    foreign key (user_id) references users (id) on delete cascade
) default character set utf8mb4;

-- The key that a session was begun with; the session goes with it.
alter table sessions add column ssh_key_id binary(16);
alter table sessions add foreign key (ssh_key_id) references ssh_keys (id) on delete cascade;
create index sessions_ssh_key on sessions (ssh_key_id);
