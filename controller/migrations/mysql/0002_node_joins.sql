-- Which key joined as which node, so that a machine whose answer was lost becomes the same node.
create table node_joins (
    key_hash varbinary(64) primary key,
    node_id binary(16) not null,
    token_id binary(16) not null,
    joined_at bigint not null,
    foreign key (node_id) references nodes (id) on delete cascade
) default character set utf8mb4;
