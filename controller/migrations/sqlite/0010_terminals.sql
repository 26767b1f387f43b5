-- A terminal that is kept for the account that opened it. The ticket is a secret of its page; each
-- time somebody comes back there is another, and the attachment says who holds it. detached_at is
-- null while somebody is there.
create table terminals (
    id blob primary key,
    instance_id blob not null,
    user_id blob not null,
    ticket_hash blob not null unique,
    attachment blob not null,
    shell text not null,
    created_at integer not null,
    detached_at integer,
    foreign key (instance_id) references instances (id) on delete cascade,
    foreign key (user_id) references users (id) on delete cascade
);
create index terminals_instance on terminals (instance_id);
create index terminals_user on terminals (user_id, created_at);
