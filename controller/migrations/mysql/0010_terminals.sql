-- A terminal that is kept for the account that opened it. The ticket is a secret of its page; each
-- time somebody comes back there is another, and the attachment says who holds it. detached_at is
-- null while somebody is there.
create table terminals (
    id binary(16) primary key,
    instance_id binary(16) not null,
    user_id binary(16) not null,
    ticket_hash varbinary(64) not null unique,
    attachment binary(16) not null,
    shell varchar(191) collate utf8mb4_bin not null,
    created_at bigint not null,
    detached_at bigint,
    foreign key (instance_id) references instances (id) on delete cascade,
    foreign key (user_id) references users (id) on delete cascade
) default character set utf8mb4;
create index terminals_instance on terminals (instance_id);
create index terminals_user on terminals (user_id, created_at);
