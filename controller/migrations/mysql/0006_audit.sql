-- How the actor came in. The default is for rows that are there already, and for a controller of the
-- version before that still writes while this one starts.
alter table audit_events add column via varchar(191) collate utf8mb4_bin not null default '';
create index audit_events_request on audit_events (request_id(64));
create index audit_events_actor on audit_events (actor_id);

-- The key of the chain, sealed under the master key.
create table audit_keys (
    id binary(16) primary key,
    sealed_key longblob not null,
    created_at bigint not null
) default character set utf8mb4;

-- One link for each event: its place in the chain and the keyed code over it and the link before.
create table audit_seals (
    seq bigint primary key,
    event_id binary(16) not null unique,
    sealed_at bigint not null,
    mac varbinary(64) not null
) default character set utf8mb4;

-- The last link that retention removed, signed.
create table audit_checkpoints (
    seq bigint primary key,
    mac varbinary(64) not null,
    made_at bigint not null,
    signature varbinary(64) not null
) default character set utf8mb4;
