-- A terminal that is kept for the account that opened it. The ticket is a secret of its page; each
-- time somebody comes back there is another, and the attachment says who holds it. detached_at is
-- null while somebody is there.
create table terminals (
    id uuid primary key,
    instance_id uuid not null,
    user_id uuid not null,
    ticket_hash bytea not null unique,
    attachment uuid not null,
    shell text not null,
    created_at bigint not null,
    detached_at bigint,
    foreign key (instance_id) references instances (id) on delete cascade,
    foreign key (user_id) references users (id) on delete cascade
);
create index terminals_instance on terminals (instance_id);
create index terminals_user on terminals (user_id, created_at);
