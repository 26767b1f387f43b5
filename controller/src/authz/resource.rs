//! Resources that a grant can point at: id to owner and parents. The only SQL of this kind.

use std::convert::identity;

use tianqi_common::id::{ForwardId, ImageId, InstanceId, NodeId, SpecId, UserId};
use uuid::Uuid;

use super::RoleName;
use crate::core::db::{Db, args, row};
use crate::core::error::{Problem, Result};

/// Something a grant can point at.
pub trait Resource: Sized + Send {
    /// The account it belongs to; nothing when it belongs to nobody.
    fn owner(&self) -> Option<UserId>;

    /// The answer when there is none, or none that the caller may know of.
    fn missing() -> Problem;

    /// Finds it by the id in the path; resources without an id ignore it.
    ///
    /// # Errors
    ///
    /// `not_found` (404), `bad_id` (400).
    fn find(db: &Db, id: Option<&str>) -> impl Future<Output = Result<Self>> + Send;
}

/// Stands for "no resource in particular": lists and creations.
#[derive(Clone, Copy, Debug)]
pub struct Anything;

/// An instance, with what others need to know to reach it.
#[derive(Clone, Debug)]
pub struct InstanceRef {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub owner: UserId,
    /// Its name.
    pub name: String,
    /// Where; nothing while it is not placed.
    pub node: Option<NodeId>,
}

/// A port forward.
#[derive(Clone, Copy, Debug)]
pub struct ForwardRef {
    /// Which.
    pub id: ForwardId,
    /// Whose.
    pub owner: UserId,
}

/// A node.
#[derive(Clone, Copy, Debug)]
pub struct NodeRef {
    /// Which.
    pub id: NodeId,
}

/// A join token.
#[derive(Clone, Copy, Debug)]
pub struct JoinTokenRef {
    /// Which.
    pub id: Uuid,
}

/// An image.
#[derive(Clone, Copy, Debug)]
pub struct ImageRef {
    /// Which.
    pub id: ImageId,
}

/// A spec.
#[derive(Clone, Copy, Debug)]
pub struct SpecRef {
    /// Which.
    pub id: SpecId,
}

/// A role, built in or not. Its name is its id.
#[derive(Clone, Debug)]
pub struct RoleRef {
    /// Which.
    pub name: RoleName,
}

/// An account.
#[derive(Clone, Copy, Debug)]
pub struct UserRef {
    /// Which.
    pub id: UserId,
}

fn parse(id: Option<&str>) -> Result<Uuid> {
    id.and_then(|id| id.parse().ok())
        .ok_or_else(|| Problem::bad_request("bad_id", "the id in the path is not a UUID"))
}

impl Resource for Anything {
    fn owner(&self) -> Option<UserId> {
        None
    }

    fn missing() -> Problem {
        Problem::not_found("not_found", "there is no such thing")
    }

    async fn find(_db: &Db, _id: Option<&str>) -> Result<Self> {
        Ok(Self)
    }
}

row! {
    struct InstanceRow { owner_id: Uuid, name: String, node_id: Option<Uuid> }
}

impl Resource for InstanceRef {
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }

    fn missing() -> Problem {
        Problem::not_found("no_such_instance", "there is no such instance")
    }

    async fn find(db: &Db, id: Option<&str>) -> Result<Self> {
        const SQL: &str = "select owner_id, name, node_id from instances \
             where id = $1 and deleted_at is null";
        let id = parse(id)?;
        let row: Option<InstanceRow> = db.first(SQL, args![id]).await?;
        let row = row.ok_or_else(Self::missing)?;
        Ok(Self {
            id: InstanceId(id),
            owner: UserId(row.owner_id),
            name: row.name,
            node: row.node_id.map(NodeId),
        })
    }
}

row! {
    struct OwnerRow { owner_id: Uuid }
}

impl Resource for ForwardRef {
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }

    fn missing() -> Problem {
        Problem::not_found("no_such_forward", "there is no such forward")
    }

    async fn find(db: &Db, id: Option<&str>) -> Result<Self> {
        let id = parse(id)?;
        let sql = "select owner_id from forwards where id = $1";
        let row: Option<OwnerRow> = db.first(sql, args![id]).await?;
        let row = row.ok_or_else(Self::missing)?;
        Ok(Self { id: ForwardId(id), owner: UserId(row.owner_id) })
    }
}

impl Resource for RoleRef {
    fn owner(&self) -> Option<UserId> {
        None
    }

    fn missing() -> Problem {
        Problem::not_found("no_such_role", "there is no such role")
    }

    async fn find(db: &Db, id: Option<&str>) -> Result<Self> {
        let name = RoleName::new(id.unwrap_or_default());
        let sql = "select count(*) from roles where name = $1";
        if !name.is_built_in() && db.number(sql, args![name.as_str()]).await? == 0 {
            return Err(Self::missing());
        }
        Ok(Self { name })
    }
}

macro_rules! plain_resource {
    ($name:ident, $id:ident, $sql:literal, $code:literal, $detail:literal) => {
        impl Resource for $name {
            fn owner(&self) -> Option<UserId> {
                None
            }

            fn missing() -> Problem {
                Problem::not_found($code, $detail)
            }

            async fn find(db: &Db, id: Option<&str>) -> Result<Self> {
                let id = parse(id)?;
                if db.number($sql, args![id]).await? == 0 {
                    return Err(Self::missing());
                }
                Ok(Self { id: $id(id) })
            }
        }
    };
}

plain_resource!(
    NodeRef,
    NodeId,
    "select count(*) from nodes where id = $1",
    "no_such_node",
    "there is no such node"
);
plain_resource!(
    JoinTokenRef,
    identity,
    "select count(*) from join_tokens where id = $1",
    "no_such_join_token",
    "there is no such join token"
);
plain_resource!(
    ImageRef,
    ImageId,
    "select count(*) from images where id = $1",
    "no_such_image",
    "there is no such image"
);
plain_resource!(
    SpecRef,
    SpecId,
    "select count(*) from specs where id = $1",
    "no_such_spec",
    "there is no such spec"
);
plain_resource!(
    UserRef,
    UserId,
    "select count(*) from users where id = $1",
    "no_such_user",
    "there is no such user"
);
