-- How the actor came in. The default is for rows that are there already, and for a controller of the
-- version before that still writes while this one starts.
alter table audit_events add column via text not null default '';
create index audit_events_request on audit_events (request_id);
create index audit_events_actor on audit_events (actor_id);

-- The key of the chain, sealed under the master key.
create table audit_keys (
    id blob primary key,
    sealed_key blob not null,
    created_at integer not null
);

-- One link for each event: its place in the chain and the keyed code over it and the link before.
create table audit_seals (
    seq integer primary key,
    event_id blob not null unique,
    sealed_at integer not null,
    mac blob not null
);

-- The last link that retention removed, signed.
create table audit_checkpoints (
    seq integer primary key,
    mac blob not null,
    made_at integer not null,
    signature blob not null
);

-- Rows of the audit are added and, by retention, removed; nothing changes one. A statement that tries
-- is a defect. (MySQL has no such trigger: making one takes a right that many sites do not give.)
create trigger audit_events_fixed before update on audit_events
begin
    select raise(abort, 'rows of the audit are never changed');
end;
