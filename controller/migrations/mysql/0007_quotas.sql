-- What an account, or every account of a role, may have at most. One of user_id and role is set. A
-- quantity is null when the row says nothing of it, and -1 for "no limit". custom_role repeats a role
-- that is a row of its own, so that its quota goes with it.
create table quotas (
    id binary(16) primary key,
    user_id binary(16) unique,
    role varchar(191) collate utf8mb4_bin unique,
    custom_role varchar(191) collate utf8mb4_bin,
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
) default character set utf8mb4;
