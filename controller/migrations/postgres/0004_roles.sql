-- Roles beside the built-in ones. What each allows is JSON: [{"permission": …, "reach": "own"|"all"}].
create table roles (
    name text primary key,
    description text not null,
    permissions text not null,
    created_at bigint not null,
    updated_at bigint not null
);
create index users_role on users (role);
