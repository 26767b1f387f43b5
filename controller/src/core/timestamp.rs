//! Times at the edge: RFC 3339 in UTC with milliseconds, such as `2026-01-31T08:30:00.000Z`.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tianqi_common::clock::UnixMillis;
use utoipa::openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type};

use super::db::Value;

/// A time in a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub UnixMillis);

impl Timestamp {
    /// Takes a time as the database holds it.
    #[must_use]
    pub fn from_stored(millis: i64) -> Self {
        Self(UnixMillis(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A time outside of chrono's range (262 000 years) is shown as the beginning of 1970.
        let time = DateTime::from_timestamp_millis(self.0.0).unwrap_or_default();
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl From<UnixMillis> for Timestamp {
    fn from(time: UnixMillis) -> Self {
        Self(time)
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        Self::from(time.0)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(|_| {
            serde::de::Error::custom("times are written like 2026-01-31T08:30:00Z (RFC 3339)")
        })?;
        Ok(Self(UnixMillis(time.timestamp_millis())))
    }
}

impl utoipa::PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("RFC 3339, UTC"))
            .into()
    }
}

impl utoipa::ToSchema for Timestamp {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_time_survives_being_written_and_read(millis in 0_i64..253_402_300_799_999) {
            let written = serde_json::to_string(&Timestamp::from_stored(millis)).unwrap();

            let read: Timestamp = serde_json::from_str(&written).unwrap();

            prop_assert_eq!(read, Timestamp::from_stored(millis));
            prop_assert!(written.ends_with("Z\""));
        }
    }

    #[test]
    fn another_zone_is_understood_and_nonsense_refused() {
        let time: Timestamp = serde_json::from_str("\"1970-01-01T08:00:01+08:00\"").unwrap();

        assert_eq!(time, Timestamp::from_stored(1_000));
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
        assert!(serde_json::from_str::<Timestamp>("1000").is_err());
    }
}
