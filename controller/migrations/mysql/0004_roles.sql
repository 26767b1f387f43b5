-- Roles beside the built-in ones. What each allows is JSON: [{"permission": …, "reach": "own"|"all"}].
create table roles (
    name varchar(191) collate utf8mb4_bin primary key,
    description longtext not null,
    permissions longtext not null,
    created_at bigint not null,
    updated_at bigint not null
) default character set utf8mb4;
create index users_role on users (role);
