-- Ports that lead somewhere. Either target_ip and target_port are set, or instance_id and instance_port.
-- allowed_sources is a JSON list of networks; an empty one lets everybody in.
create table forwards (
    id binary(16) primary key,
    owner_id binary(16) not null,
    listen_ip varchar(191) collate utf8mb4_bin not null,
    listen_port bigint not null,
    protocol varchar(191) collate utf8mb4_bin not null,
    target_ip varchar(191) collate utf8mb4_bin,
    target_port bigint,
    instance_id binary(16),
    instance_port bigint,
    enabled boolean not null,
    description longtext not null,
    remark longtext not null,
    allowed_sources longtext not null,
    max_connections bigint not null,
    udp_idle_s bigint not null,
    generation bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    unique (listen_ip, listen_port, protocol),
    foreign key (owner_id) references users (id) on delete cascade,
    foreign key (instance_id) references instances (id) on delete cascade
) default character set utf8mb4;

create index forwards_owner on forwards (owner_id);
create index forwards_instance on forwards (instance_id);

-- Whoever changes a forward locks this row first: whether ports clash and forwards run in a circle
-- is decided over all of them.
insert into meta (name, value) values ('forwards', '');
