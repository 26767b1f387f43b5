//! Where the authorities are kept: rows of `ca_certificates`, keys sealed.

use tianqi_common::clock::UnixMillis;
use uuid::Uuid;

use super::{Authority, Ca, CaError, Lifetimes, RENEWABLE_AFTER_END};
use crate::core::db::{Db, args, row};
use crate::core::seal::Seal;
use crate::core::seal::rotate::SealedColumn;

/// `ca_certificates.kind` of an authority for agents.
const KIND: &str = "agents";

row! {
    struct AuthorityRow { id: Uuid, certificate_pem: String, sealed_key: Vec<u8>, created_at: i64 }
}

/// The authorities' keys.
pub const SEALED: SealedColumn =
    SealedColumn { table: "ca_certificates", column: "sealed_key", bound_to };

fn bound_to(id: Uuid) -> String {
    format!("ca_certificates/{id}")
}

/// Reads the authorities, and makes the first one, or the successor of one that ends soon.
///
/// # Errors
///
/// [`CaError`] when the rows cannot be read or a key does not open.
pub async fn open(
    db: &Db,
    seal: &Seal,
    lifetimes: Lifetimes,
    now: UnixMillis,
) -> Result<Ca, CaError> {
    let authorities = read(db, seal, now).await?;
    match Ca::new(authorities, lifetimes) {
        Ok(ca) if !ca.needs_successor(now) => Ok(ca),
        Ok(_) | Err(CaError::Empty) => {
            insert(db, seal, &Authority::generate(now)?, now).await?;
            Ca::new(read(db, seal, now).await?, lifetimes)
        }
        Err(error) => Err(error),
    }
}

/// Returns those that sign, or signed a certificate that may still be renewed.
async fn read(db: &Db, seal: &Seal, now: UnixMillis) -> Result<Vec<Authority>, CaError> {
    const SQL: &str = "select id, certificate_pem, sealed_key, created_at from ca_certificates \
         where kind = $1 and not_after > $2 order by created_at";
    let since = UnixMillis(now.0 - super::ms(RENEWABLE_AFTER_END));
    let rows: Vec<AuthorityRow> = db.all(SQL, args![KIND, since]).await.map_err(CaError::Db)?;
    rows.into_iter()
        .map(|row| {
            let key = seal.open(&bound_to(row.id), &row.sealed_key).map_err(CaError::Seal)?;
            let key = std::str::from_utf8(&key).map_err(|_| CaError::Stored(row.id.to_string()))?;
            Authority::read(&row.certificate_pem, key, UnixMillis(row.created_at))
        })
        .collect()
}

async fn insert(
    db: &Db,
    seal: &Seal,
    authority: &Authority,
    now: UnixMillis,
) -> Result<(), CaError> {
    const SQL: &str = "insert into ca_certificates \
         (id, kind, certificate_pem, sealed_key, not_before, not_after, created_at) \
         values ($1, $2, $3, $4, $5, $6, $7)";
    let id = Uuid::now_v7();
    let key = authority.key_pem();
    let sealed = seal.seal(&bound_to(id), key.as_bytes()).map_err(CaError::Seal)?;
    let values = args![
        id,
        KIND,
        authority.certificate_pem(),
        sealed,
        authority.not_before,
        authority.not_after,
        now,
    ];
    db.run(SQL, values).await.map_err(CaError::Db)?;
    Ok(())
}
