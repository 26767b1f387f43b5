-- Which key joined as which node, so that a machine whose answer was lost becomes the same node.
create table node_joins (
    key_hash bytea primary key,
    node_id uuid not null,
    token_id uuid not null,
    joined_at bigint not null,
    foreign key (node_id) references nodes (id) on delete cascade
);
