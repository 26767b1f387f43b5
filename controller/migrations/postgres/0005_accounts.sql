-- What an account says of its owner. Rows from before say nothing.
alter table users add column email text not null default '';
alter table users add column phone text not null default '';
alter table users add column avatar_color text not null default '';

-- Tokens that people make for their programs. The token itself is stored nowhere.
create table api_tokens (
    id uuid primary key,
    user_id uuid not null,
    name text not null,
    token_hash bytea not null unique,
    permissions text not null,
    created_at bigint not null,
    expires_at bigint not null,
    last_used_at bigint,
    last_used_address text not null,
    unique (user_id, name),
    foreign key (user_id) references users (id) on delete cascade
);
