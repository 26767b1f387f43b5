create table meta (
    name varchar(191) collate utf8mb4_bin primary key,
    value longtext not null
) default character set utf8mb4;

create table ca_certificates (
    id binary(16) primary key,
    kind varchar(191) collate utf8mb4_bin not null,
    certificate_pem longtext not null,
    sealed_key longblob not null,
    not_before bigint not null,
    not_after bigint not null,
    created_at bigint not null
) default character set utf8mb4;

create table users (
    id binary(16) primary key,
    name varchar(191) collate utf8mb4_bin not null unique,
    display_name longtext not null,
    password_hash longtext not null,
    role varchar(191) collate utf8mb4_bin not null,
    disabled boolean not null,
    must_change_password boolean not null,
    created_at bigint not null,
    updated_at bigint not null
) default character set utf8mb4;

create table sessions (
    id binary(16) primary key,
    user_id binary(16) not null,
    token_hash varbinary(64) not null unique,
    kind varchar(191) collate utf8mb4_bin not null,
    remote_address longtext not null,
    user_agent longtext not null,
    created_at bigint not null,
    last_used_at bigint not null,
    expires_at bigint not null,
    foreign key (user_id) references users (id) on delete cascade
) default character set utf8mb4;

create table audit_events (
    id binary(16) primary key,
    at bigint not null,
    actor_id binary(16),
    actor_name longtext not null,
    actor_kind varchar(191) collate utf8mb4_bin not null,
    action varchar(191) collate utf8mb4_bin not null,
    target_kind varchar(191) collate utf8mb4_bin not null,
    target_id varchar(191) collate utf8mb4_bin not null,
    outcome varchar(191) collate utf8mb4_bin not null,
    detail longtext not null,
    remote_address longtext not null,
    request_id longtext not null
) default character set utf8mb4;
create index audit_events_at on audit_events (at);
create index audit_events_target on audit_events (target_kind, target_id);

create table idempotency_keys (
    user_id binary(16) not null,
    request_key varchar(191) collate utf8mb4_bin not null,
    body_hash varbinary(64) not null,
    resource_id binary(16) not null,
    created_at bigint not null,
    primary key (user_id, request_key)
) default character set utf8mb4;
create index idempotency_keys_created on idempotency_keys (created_at);

create table join_tokens (
    id binary(16) primary key,
    description longtext not null,
    secret_hash varbinary(64) not null unique,
    max_uses bigint not null,
    uses bigint not null,
    expires_at bigint not null,
    created_by binary(16) not null,
    created_at bigint not null
) default character set utf8mb4;

create table nodes (
    id binary(16) primary key,
    name varchar(191) collate utf8mb4_bin not null unique,
    region longtext not null,
    public_ip longtext not null,
    private_ip longtext not null,
    ssh_port bigint not null,
    ssh_user longtext not null,
    remark longtext not null,
    listed boolean not null,
    cordoned boolean not null,
    hami_dir longtext,
    docker_endpoint longtext,
    sealed_docker_tls longblob,
    docker_status varchar(191) collate utf8mb4_bin not null,
    docker_reason longtext not null,
    inventory longtext,
    agent_program longtext not null,
    boot_id binary(16),
    boot_started_at bigint not null,
    online boolean not null,
    offline_reason longtext not null,
    last_seen_at bigint,
    clock_skew_ms bigint not null,
    cpu_millicores bigint not null,
    memory_mib bigint not null,
    disk_gib bigint not null,
    observed_epoch bigint not null,
    observed_generation bigint not null,
    created_at bigint not null,
    updated_at bigint not null
) default character set utf8mb4;

create table node_gpus (
    uuid varchar(191) collate utf8mb4_bin primary key,
    node_id binary(16) not null,
    card_index bigint not null,
    model varchar(191) collate utf8mb4_bin not null,
    memory_total_mib bigint not null,
    memory_reserved_mib bigint not null,
    pci_bus_id varchar(191) collate utf8mb4_bin not null,
    numa_node bigint,
    simulated boolean not null,
    present boolean not null,
    sick longtext not null,
    mig_enabled boolean not null,
    mode varchar(191) collate utf8mb4_bin not null,
    max_shares bigint not null,
    updated_at bigint not null,
    foreign key (node_id) references nodes (id) on delete cascade
) default character set utf8mb4;
create index node_gpus_node on node_gpus (node_id);

create table agent_certificates (
    serial varchar(191) collate utf8mb4_bin primary key,
    node_id binary(16) not null,
    not_before bigint not null,
    not_after bigint not null,
    created_at bigint not null,
    revoked_at bigint
) default character set utf8mb4;
create index agent_certificates_node on agent_certificates (node_id);

create table images (
    id binary(16) primary key,
    name varchar(191) collate utf8mb4_bin not null unique,
    address longtext not null,
    description longtext not null,
    source longtext not null,
    supports_slicing boolean not null,
    listed boolean not null,
    remark longtext not null,
    registry_username longtext,
    sealed_registry_password longblob,
    created_at bigint not null,
    updated_at bigint not null
) default character set utf8mb4;

create table specs (
    id binary(16) primary key,
    name varchar(191) collate utf8mb4_bin not null unique,
    gpu_model varchar(191) collate utf8mb4_bin,
    gpu_count bigint not null,
    gpu_memory_mib bigint,
    gpu_core_percent bigint,
    slicing boolean not null,
    cpu_millicores bigint not null,
    memory_mib bigint not null,
    system_disk_gib bigint not null,
    data_disk_gib bigint not null,
    price_per_hour_micros bigint not null,
    listed boolean not null,
    remark longtext not null,
    created_at bigint not null,
    updated_at bigint not null
) default character set utf8mb4;

create table instances (
    id binary(16) primary key,
    owner_id binary(16) not null,
    name varchar(191) collate utf8mb4_bin not null,
    live_name varchar(191) collate utf8mb4_bin,
    image_id binary(16) not null,
    spec_id binary(16) not null,
    requested_node_id binary(16),
    node_id binary(16),
    image_address longtext not null,
    spec longtext not null,
    environment longtext not null,
    restart_policy varchar(191) collate utf8mb4_bin not null,
    priority bigint not null,
    remark longtext not null,
    desired varchar(191) collate utf8mb4_bin not null,
    generation bigint not null,
    phase varchar(191) collate utf8mb4_bin not null,
    reason_code varchar(191) collate utf8mb4_bin not null,
    reason longtext not null,
    reason_detail longtext not null,
    observed_generation bigint not null,
    container_id longtext,
    container_name longtext not null,
    limits longtext not null,
    gpus longtext not null,
    fail_if_full boolean not null,
    exit_code bigint,
    restarts bigint not null,
    queued_at bigint not null,
    started_at bigint,
    created_at bigint not null,
    updated_at bigint not null,
    deleted_at bigint,
    unique (owner_id, live_name)
) default character set utf8mb4;
create index instances_node on instances (node_id);
create index instances_phase on instances (phase);
create index instances_created on instances (created_at);
create index instances_image on instances (image_id);
create index instances_spec on instances (spec_id);

create table instance_events (
    id binary(16) primary key,
    instance_id binary(16) not null,
    at bigint not null,
    kind varchar(191) collate utf8mb4_bin not null,
    message longtext not null,
    foreign key (instance_id) references instances (id) on delete cascade
) default character set utf8mb4;
create index instance_events_instance on instance_events (instance_id, at);

create table node_grants (
    instance_id binary(16) primary key,
    node_id binary(16) not null,
    cpu_millicores bigint not null,
    memory_mib bigint not null,
    disk_gib bigint not null,
    created_at bigint not null,
    foreign key (instance_id) references instances (id) on delete cascade
) default character set utf8mb4;
create index node_grants_node on node_grants (node_id);

create table node_revisions (
    node_id binary(16) primary key,
    generation bigint not null
) default character set utf8mb4;

create table gpu_grants (
    instance_id binary(16) not null,
    gpu_uuid varchar(191) collate utf8mb4_bin not null,
    node_id binary(16) not null,
    memory_mib bigint not null,
    cores bigint not null,
    exclusive boolean not null,
    created_at bigint not null,
    primary key (instance_id, gpu_uuid),
    foreign key (instance_id) references instances (id) on delete cascade
) default character set utf8mb4;
create index gpu_grants_gpu on gpu_grants (gpu_uuid);
create index gpu_grants_node on gpu_grants (node_id);
