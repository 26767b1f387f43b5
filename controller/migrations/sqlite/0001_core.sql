create table meta (
    name text primary key,
    value text not null
);

create table ca_certificates (
    id blob primary key,
    kind text not null,
    certificate_pem text not null,
    sealed_key blob not null,
    not_before integer not null,
    not_after integer not null,
    created_at integer not null
);

create table users (
    id blob primary key,
    name text not null unique,
    display_name text not null,
    password_hash text not null,
    role text not null,
    disabled boolean not null,
    must_change_password boolean not null,
    created_at integer not null,
    updated_at integer not null
);

create table sessions (
    id blob primary key,
    user_id blob not null,
    token_hash blob not null unique,
    kind text not null,
    remote_address text not null,
    user_agent text not null,
    created_at integer not null,
    last_used_at integer not null,
    expires_at integer not null,
    foreign key (user_id) references users (id) on delete cascade
);

create table audit_events (
    id blob primary key,
    at integer not null,
    actor_id blob,
    actor_name text not null,
    actor_kind text not null,
    action text not null,
    target_kind text not null,
    target_id text not null,
    outcome text not null,
    detail text not null,
    remote_address text not null,
    request_id text not null
);
create index audit_events_at on audit_events (at);
create index audit_events_target on audit_events (target_kind, target_id);

create table idempotency_keys (
    user_id blob not null,
    request_key text not null,
    body_hash blob not null,
    resource_id blob not null,
    created_at integer not null,
    primary key (user_id, request_key)
);
create index idempotency_keys_created on idempotency_keys (created_at);

create table join_tokens (
    id blob primary key,
    description text not null,
    secret_hash blob not null unique,
    max_uses integer not null,
    uses integer not null,
    expires_at integer not null,
    created_by blob not null,
    created_at integer not null
);

create table nodes (
    id blob primary key,
    name text not null unique,
    region text not null,
    public_ip text not null,
    private_ip text not null,
    ssh_port integer not null,
    ssh_user text not null,
    remark text not null,
    listed boolean not null,
    cordoned boolean not null,
    hami_dir text,
    docker_endpoint text,
    sealed_docker_tls blob,
    docker_status text not null,
    docker_reason text not null,
    inventory text,
    agent_program text not null,
    boot_id blob,
    boot_started_at integer not null,
    online boolean not null,
    offline_reason text not null,
    last_seen_at integer,
    clock_skew_ms integer not null,
    cpu_millicores integer not null,
    memory_mib integer not null,
    disk_gib integer not null,
    observed_epoch integer not null,
    observed_generation integer not null,
    created_at integer not null,
    updated_at integer not null
);

create table node_gpus (
    uuid text primary key,
    node_id blob not null,
    card_index integer not null,
    model text not null,
    memory_total_mib integer not null,
    memory_reserved_mib integer not null,
    pci_bus_id text not null,
    numa_node integer,
    simulated boolean not null,
    present boolean not null,
    sick text not null,
    mig_enabled boolean not null,
    mode text not null,
    max_shares integer not null,
    updated_at integer not null,
    foreign key (node_id) references nodes (id) on delete cascade
);
create index node_gpus_node on node_gpus (node_id);

create table agent_certificates (
    serial text primary key,
    node_id blob not null,
    not_before integer not null,
    not_after integer not null,
    created_at integer not null,
    revoked_at integer
);
create index agent_certificates_node on agent_certificates (node_id);

create table images (
    id blob primary key,
    name text not null unique,
    address text not null,
    description text not null,
    source text not null,
    supports_slicing boolean not null,
    listed boolean not null,
    remark text not null,
    registry_username text,
    sealed_registry_password blob,
    created_at integer not null,
    updated_at integer not null
);

create table specs (
    id blob primary key,
    name text not null unique,
    gpu_model text,
    gpu_count integer not null,
    gpu_memory_mib integer,
    gpu_core_percent integer,
    slicing boolean not null,
    cpu_millicores integer not null,
    memory_mib integer not null,
    system_disk_gib integer not null,
    data_disk_gib integer not null,
    price_per_hour_micros integer not null,
    listed boolean not null,
    remark text not null,
    created_at integer not null,
    updated_at integer not null
);

create table instances (
    id blob primary key,
    owner_id blob not null,
    name text not null,
    live_name text,
    image_id blob not null,
    spec_id blob not null,
    requested_node_id blob,
    node_id blob,
    image_address text not null,
    spec text not null,
    environment text not null,
    restart_policy text not null,
    priority integer not null,
    remark text not null,
    desired text not null,
    generation integer not null,
    phase text not null,
    reason_code text not null,
    reason text not null,
    reason_detail text not null,
    observed_generation integer not null,
    container_id text,
    container_name text not null,
    limits text not null,
    gpus text not null,
    fail_if_full boolean not null,
    exit_code integer,
    restarts integer not null,
    queued_at integer not null,
    started_at integer,
    created_at integer not null,
    updated_at integer not null,
    deleted_at integer,
    unique (owner_id, live_name)
);
create index instances_node on instances (node_id);
create index instances_phase on instances (phase);
create index instances_created on instances (created_at);
create index instances_image on instances (image_id);
create index instances_spec on instances (spec_id);

create table instance_events (
    id blob primary key,
    instance_id blob not null,
    at integer not null,
    kind text not null,
    message text not null,
    foreign key (instance_id) references instances (id) on delete cascade
);
create index instance_events_instance on instance_events (instance_id, at);

create table node_grants (
    instance_id blob primary key,
    node_id blob not null,
    cpu_millicores integer not null,
    memory_mib integer not null,
    disk_gib integer not null,
    created_at integer not null,
    foreign key (instance_id) references instances (id) on delete cascade
);
create index node_grants_node on node_grants (node_id);

create table node_revisions (
    node_id blob primary key,
    generation integer not null
);

create table gpu_grants (
    instance_id blob not null,
    gpu_uuid text not null,
    node_id blob not null,
    memory_mib integer not null,
    cores integer not null,
    exclusive boolean not null,
    created_at integer not null,
    primary key (instance_id, gpu_uuid),
    foreign key (instance_id) references instances (id) on delete cascade
);
create index gpu_grants_gpu on gpu_grants (gpu_uuid);
create index gpu_grants_node on gpu_grants (node_id);
