-- Roles beside the built-in ones. What each allows is JSON: [{"permission": …, "reach": "own"|"all"}].
create table roles (
    name text primary key,
    description text not null,
    permissions text not null,
    created_at integer not null,
    updated_at integer not null
);
create index users_role on users (role);
