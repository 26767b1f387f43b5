-- Lists count and sort the instances that live. Their rows are wide, so both are done in an index.
create index instances_live on instances (deleted_at, created_at, id);
drop index instances_created;
