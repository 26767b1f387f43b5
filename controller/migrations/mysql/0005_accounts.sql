-- What an account says of its owner. Rows from before say nothing.
alter table users add column email varchar(191) not null default '';
alter table users add column phone varchar(191) not null default '';
alter table users add column avatar_color varchar(191) not null default '';

-- Tokens that people make for their programs. The token itself is stored nowhere.
create table api_tokens (
    id binary(16) primary key,
    user_id binary(16) not null,
    name varchar(191) collate utf8mb4_bin not null,
    token_hash varbinary(64) not null unique,
    permissions longtext not null,
    created_at bigint not null,
    expires_at bigint not null,
    last_used_at bigint,
    last_used_address longtext not null,
    unique (user_id, name),
    foreign key (user_id) references users (id) on delete cascade
) default character set utf8mb4;
