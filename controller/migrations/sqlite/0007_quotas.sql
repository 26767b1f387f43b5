-- What an account, or every account of a role, may have at most. One of user_id and role is set. A
-- quantity is null when the row says nothing of it, and -1 for "no limit". custom_role repeats a role
-- that is a row of its own, so that its quota goes with it.
create table quotas (
    id blob primary key,
    user_id blob unique,
    role text unique,
    custom_role text,
    instances integer,
    gpus integer,
    gpu_memory_mib integer,
    cpu_millicores integer,
    memory_mib integer,
    disk_gib integer,
    created_at integer not null,
    updated_at integer not null,
    foreign key (user_id) references users (id) on delete cascade,
    foreign key (custom_role) references roles (name) on delete cascade
);
