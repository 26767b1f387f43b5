//! SQL of the table `images`.

use tianqi_common::clock::UnixMillis;
use tianqi_common::id::ImageId;
use tianqi_common::wire::stream::RegistryCredentials;
use uuid::Uuid;

use super::model::{Image, ImageFields, ImageQuery};
use crate::core::db::{Db, DbError, Filter, Tx, args, row};
use crate::core::page::Paging;
use crate::core::seal::Seal;
use crate::core::seal::rotate::SealedColumn;
use crate::core::timestamp::Timestamp;

row! {
    pub(super) struct ImageRow {
        pub id: Uuid,
        pub name: String,
        pub address: String,
        pub description: String,
        pub source: String,
        pub supports_slicing: bool,
        pub listed: bool,
        pub remark: String,
        pub registry_username: Option<String>,
        pub sealed_registry_password: Option<Vec<u8>>,
        pub created_at: i64,
        pub updated_at: i64,
    }
}

const COLUMNS: &str = "id, name, address, description, source, supports_slicing, listed, remark, \
     registry_username, sealed_registry_password, created_at, updated_at";

impl From<ImageRow> for Image {
    fn from(row: ImageRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            address: row.address,
            description: row.description,
            source: row.source,
            supports_slicing: row.supports_slicing,
            listed: row.listed,
            remark: row.remark,
            registry_username: row.registry_username,
            has_registry_password: row.sealed_registry_password.is_some(),
            created_at: Timestamp::from_stored(row.created_at),
            updated_at: Timestamp::from_stored(row.updated_at),
        }
    }
}

/// The registry passwords of all images.
pub const SEALED: SealedColumn =
    SealedColumn { table: "images", column: "sealed_registry_password", bound_to };

/// The row that a registry password is bound to.
pub(super) fn bound_to(id: Uuid) -> String {
    format!("images/{id}/registry_password")
}

/// Returns one page of images and how many there are on all pages.
pub(super) async fn page(
    db: &Db,
    query: &ImageQuery,
    listed_only: bool,
    paging: &Paging,
) -> Result<(Vec<ImageRow>, i64), DbError> {
    let (condition, args) = Filter::new()
        .contains("name", query.name.as_deref())
        .contains("address", query.address.as_deref())
        .contains("source", query.source.as_deref())
        .equals("listed", query.listed)
        .equals("listed", listed_only.then_some(true))
        .equals("supports_slicing", query.supports_slicing)
        .compare("created_at", ">=", query.created_after)
        .compare("created_at", "<", query.created_before)
        .build();
    let total = db.number(&format!("select count(*) from images{condition}"), args.clone()).await?;
    let sql = format!("select {COLUMNS} from images{condition}{}", paging.sql());
    Ok((db.all(&sql, args).await?, total))
}

/// Returns one image.
pub(super) async fn get(db: &Db, id: ImageId) -> Result<Option<ImageRow>, DbError> {
    db.first(&format!("select {COLUMNS} from images where id = $1"), args![id]).await
}

/// Returns one image, locked until the transaction ends.
pub(super) async fn lock(tx: &mut Tx, id: ImageId) -> Result<Option<ImageRow>, DbError> {
    tx.first(&format!("select {COLUMNS} from images where id = $1 for update"), args![id]).await
}

/// A sealed credential: account and password.
pub(super) type SealedCredentials = Option<(String, Vec<u8>)>;

/// Adds an image.
pub(super) async fn insert(
    tx: &mut Tx,
    id: ImageId,
    fields: &ImageFields,
    credentials: SealedCredentials,
    now: UnixMillis,
) -> Result<(), DbError> {
    let sql = format!(
        "insert into images ({COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)"
    );
    let (username, password) = credentials.unzip();
    let values = args![
        id,
        &fields.name,
        &fields.address,
        &fields.description,
        &fields.source,
        fields.supports_slicing,
        fields.listed,
        &fields.remark,
        username,
        password,
        now,
    ];
    tx.run(&sql, values).await.map(|_| ())
}

/// Changes an image.
pub(super) async fn update(
    tx: &mut Tx,
    id: ImageId,
    fields: &ImageFields,
    credentials: SealedCredentials,
    now: UnixMillis,
) -> Result<(), DbError> {
    const SQL: &str = "update images set name = $2, address = $3, description = $4, source = $5, \
         supports_slicing = $6, listed = $7, remark = $8, registry_username = $9, \
         sealed_registry_password = $10, updated_at = $11 where id = $1";
    let (username, password) = credentials.unzip();
    let values = args![
        id,
        &fields.name,
        &fields.address,
        &fields.description,
        &fields.source,
        fields.supports_slicing,
        fields.listed,
        &fields.remark,
        username,
        password,
        now,
    ];
    tx.run(SQL, values).await.map(|_| ())
}

/// Returns how many living instances were made from an image.
pub(super) async fn uses(tx: &mut Tx, id: ImageId) -> Result<i64, DbError> {
    let sql = "select count(*) from instances where image_id = $1 and deleted_at is null";
    tx.number(sql, args![id]).await
}

/// Removes an image.
pub(super) async fn delete(tx: &mut Tx, id: ImageId) -> Result<(), DbError> {
    tx.run("delete from images where id = $1", args![id]).await.map(|_| ())
}

/// Returns the credentials with which an image is fetched, opened; nothing when it needs none or the
/// image is gone.
///
/// # Errors
///
/// [`DbError`] when the row cannot be read, or [`DbError::Corrupt`] when the password does not open.
pub async fn credentials(
    db: &Db,
    seal: &Seal,
    id: ImageId,
) -> Result<Option<RegistryCredentials>, DbError> {
    let Some(row) = get(db, id).await? else { return Ok(None) };
    let (Some(username), Some(sealed)) = (row.registry_username, row.sealed_registry_password)
    else {
        return Ok(None);
    };
    let corrupt =
        |problem: String| DbError::Corrupt { column: "images.sealed_registry_password", problem };
    let password =
        seal.open(&bound_to(id.0), &sealed).map_err(|error| corrupt(error.to_string()))?;
    let password = String::from_utf8(password.to_vec())
        .map_err(|_| corrupt("it is not valid UTF-8".to_owned()))?;
    Ok(Some(RegistryCredentials { username, password }))
}
