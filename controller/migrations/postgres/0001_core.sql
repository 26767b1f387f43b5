create table meta (
    name text primary key,
    value text not null
);

create table ca_certificates (
    id uuid primary key,
    kind text not null,
    certificate_pem text not null,
    sealed_key bytea not null,
    not_before bigint not null,
    not_after bigint not null,
    created_at bigint not null
);

create table users (
    id uuid primary key,
    name text not null unique,
    display_name text not null,
    password_hash text not null,
    role text not null,
    disabled boolean not null,
    must_change_password boolean not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table sessions (
    id uuid primary key,
    user_id uuid not null,
    token_hash bytea not null unique,
    kind text not null,
    remote_address text not null,
    user_agent text not null,
    created_at bigint not null,
    last_used_at bigint not null,
    expires_at bigint not null,
    foreign key (user_id) references users (id) on delete cascade
);

create table audit_events (
    id uuid primary key,
    at bigint not null,
    actor_id uuid,
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
    user_id uuid not null,
    request_key text not null,
    body_hash bytea not null,
    resource_id uuid not null,
    created_at bigint not null,
    primary key (user_id, request_key)
);
create index idempotency_keys_created on idempotency_keys (created_at);

create table join_tokens (
    id uuid primary key,
    description text not null,
    secret_hash bytea not null unique,
    max_uses bigint not null,
    uses bigint not null,
    expires_at bigint not null,
    created_by uuid not null,
    created_at bigint not null
);

create table nodes (
    id uuid primary key,
    name text not null unique,
    region text not null,
    public_ip text not null,
    private_ip text not null,
    ssh_port bigint not null,
    ssh_user text not null,
    remark text not null,
    listed boolean not null,
    cordoned boolean not null,
    hami_dir text,
    docker_endpoint text,
    sealed_docker_tls bytea,
    docker_status text not null,
    docker_reason text not null,
    inventory text,
    agent_program text not null,
    boot_id uuid,
    boot_started_at bigint not null,
    online boolean not null,
    offline_reason text not null,
    last_seen_at bigint,
    clock_skew_ms bigint not null,
    cpu_millicores bigint not null,
    memory_mib bigint not null,
    disk_gib bigint not null,
    observed_epoch bigint not null,
    observed_generation bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table node_gpus (
    uuid text primary key,
    node_id uuid not null,
    card_index bigint not null,
    model text not null,
    memory_total_mib bigint not null,
    memory_reserved_mib bigint not null,
    pci_bus_id text not null,
    numa_node bigint,
    simulated boolean not null,
    present boolean not null,
    sick text not null,
    mig_enabled boolean not null,
    mode text not null,
    max_shares bigint not null,
    updated_at bigint not null,
    foreign key (node_id) references nodes (id) on delete cascade
);
create index node_gpus_node on node_gpus (node_id);

create table agent_certificates (
    serial text primary key,
    node_id uuid not null,
    not_before bigint not null,
    not_after bigint not null,
    created_at bigint not null,
    revoked_at bigint
);
create index agent_certificates_node on agent_certificates (node_id);

create table images (
    id uuid primary key,
    name text not null unique,
    address text not null,
    description text not null,
    source text not null,
    supports_slicing boolean not null,
    listed boolean not null,
    remark text not null,
    registry_username text,
    sealed_registry_password bytea,
    created_at bigint not null,
    updated_at bigint not null
);

create table specs (
    id uuid primary key,
    name text not null unique,
    gpu_model text,
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
    remark text not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table instances (
    id uuid primary key,
    owner_id uuid not null,
    name text not null,
    live_name text,
    image_id uuid not null,
    spec_id uuid not null,
    requested_node_id uuid,
    node_id uuid,
    image_address text not null,
    spec text not null,
    environment text not null,
    restart_policy text not null,
    priority bigint not null,
    remark text not null,
    desired text not null,
    generation bigint not null,
    phase text not null,
    reason_code text not null,
    reason text not null,
    reason_detail text not null,
    observed_generation bigint not null,
    container_id text,
    container_name text not null,
    limits text not null,
    gpus text not null,
    fail_if_full boolean not null,
    exit_code bigint,
    restarts bigint not null,
    queued_at bigint not null,
    started_at bigint,
    created_at bigint not null,
    updated_at bigint not null,
    deleted_at bigint,
    unique (owner_id, live_name)
);
create index instances_node on instances (node_id);
create index instances_phase on instances (phase);
create index instances_created on instances (created_at);
create index instances_image on instances (image_id);
create index instances_spec on instances (spec_id);

create table instance_events (
    id uuid primary key,
    instance_id uuid not null,
    at bigint not null,
    kind text not null,
    message text not null,
    foreign key (instance_id) references instances (id) on delete cascade
);
create index instance_events_instance on instance_events (instance_id, at);

create table node_grants (
    instance_id uuid primary key,
    node_id uuid not null,
    cpu_millicores bigint not null,
    memory_mib bigint not null,
    disk_gib bigint not null,
    created_at bigint not null,
    foreign key (instance_id) references instances (id) on delete cascade
);
create index node_grants_node on node_grants (node_id);

create table node_revisions (
    node_id uuid primary key,
    generation bigint not null
);

create table gpu_grants (
    instance_id uuid not null,
    gpu_uuid text not null,
    node_id uuid not null,
    memory_mib bigint not null,
    cores bigint not null,
    exclusive boolean not null,
    created_at bigint not null,
    primary key (instance_id, gpu_uuid),
    foreign key (instance_id) references instances (id) on delete cascade
);
create index gpu_grants_gpu on gpu_grants (gpu_uuid);
create index gpu_grants_node on gpu_grants (node_id);
