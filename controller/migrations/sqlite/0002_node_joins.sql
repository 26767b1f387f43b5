-- Which key joined as which node, so that a machine whose answer was lost becomes the same node.
create table node_joins (
    key_hash blob primary key,
    node_id blob not null,
    token_id blob not null,
    joined_at integer not null,
    foreign key (node_id) references nodes (id) on delete cascade
);
