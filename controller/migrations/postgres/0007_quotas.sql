-- What an account, or every account of a role, may have at most. One of user_id and role is set. A
-- quantity is null when the row says nothing of it, and -1 for "no limit". custom_role repeats a role
-- that is a row of its own, so that its quota goes with it.
create table quotas (
    id uuid primary key,
    user_id uuid unique,
    role text unique,
    custom_role text,
    instances bigint,
    gpus bigint,
    gpu_memory_mib bigint,
    cpu_millicores bigint,
    memory_mib bigint,
    disk_gib bigint,
    created_at bigint not null,
    updated_at bigint not null,
    foreign key (user_id) references users (id) on delete cascade,
    foreign key (custom_role) references roles (name) on delete cascade
);
