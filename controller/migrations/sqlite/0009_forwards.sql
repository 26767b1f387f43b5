-- Ports that lead somewhere. Either target_ip and target_port are set, or instance_id and instance_port.
-- allowed_sources is a JSON list of networks; an empty one lets everybody in.
create table forwards (
    id blob primary key,
    owner_id blob not null,
    listen_ip text not null,
    listen_port integer not null,
    protocol text not null,
    target_ip text,
    target_port integer,
    instance_id blob,
    instance_port integer,
    enabled boolean not null,
    description text not null,
    remark text not null,
    allowed_sources text not null,
    max_connections integer not null,
    udp_idle_s integer not null,
    generation integer not null,
    created_at integer not null,
    updated_at integer not null,
    unique (listen_ip, listen_port, protocol),
    foreign key (owner_id) references users (id) on delete cascade,
    foreign key (instance_id) references instances (id) on delete cascade
);

create index forwards_owner on forwards (owner_id);
create index forwards_instance on forwards (instance_id);

-- Whoever changes a forward locks this row first: whether ports clash and forwards run in a circle
-- is decided over all of them.
insert into meta (name, value) values ('forwards', '');
