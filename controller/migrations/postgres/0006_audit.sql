-- How the actor came in. The default is for rows that are there already, and for a controller of the
-- version before that still writes while this one starts.
alter table audit_events add column via text not null default '';
create index audit_events_request on audit_events (request_id);
create index audit_events_actor on audit_events (actor_id);

-- The key of the chain, sealed under the master key.
create table audit_keys (
    id uuid primary key,
    sealed_key bytea not null,
    created_at bigint not null
);

-- One link for each event: its place in the chain and the keyed code over it and the link before.
create table audit_seals (
    seq bigint primary key,
    event_id uuid not null unique,
    sealed_at bigint not null,
    mac bytea not null
);

-- The last link that retention removed, signed.
create table audit_checkpoints (
    seq bigint primary key,
    mac bytea not null,
    made_at bigint not null,
    signature bytea not null
);

-- Rows of the audit are added and, by retention, removed; nothing changes one. A statement that tries
-- is a defect. (MySQL has no such trigger: making one takes a right that many sites do not give.)
create function audit_events_fixed() returns trigger language plpgsql as $$
begin
    raise exception 'rows of the audit are never changed';
end;
$$;
create trigger audit_events_fixed before update on audit_events
    for each row execute function audit_events_fixed();
