//! Numbers at the edge: money as decimal text, CPU cores as a number; integers inside.

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tianqi_common::unit::Millicores;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};

/// Most micro-units of money: one million units.
const MONEY_MAX: i64 = 1_000_000 * 1_000_000;
/// Most cores of one machine, in millicores; far above what exists.
const CORES_MAX: u64 = 4_096 * 1_000;
/// Most cores of many machines together, in millicores: a million cores.
const TOTAL_CORES_MAX: u64 = 1_000_000 * 1_000;

/// Money in micro-units (a millionth), written as decimal text such as `"1.25"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(i64);

/// CPU cores with at most three decimals, written as a number such as `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuCores(pub Millicores);

/// Why a number was refused; the message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// Not money.
    #[error(
        "{0:?} is not an amount; write a decimal text from \"0\" to \"1000000\" with at most 6 decimals, such as \"1.25\""
    )]
    Money(String),
    /// Not a number of cores.
    #[error(
        "{0} is not a number of cores; write 0.001 to 4096 with at most 3 decimals, such as 0.5"
    )]
    Cores(String),
    /// Not a number of cores of many machines.
    #[error("{0} is not a number of cores; write 0 to 1000000 with at most 3 decimals")]
    TotalCores(String),
}

impl Money {
    /// Takes what the database holds.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns what the database holds.
    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Reads decimal text.
    ///
    /// # Errors
    ///
    /// [`NumberError::Money`].
    pub fn parse(text: &str) -> Result<Self, NumberError> {
        let refused = || NumberError::Money(text.chars().take(40).collect());
        let micros = scaled(text, 1_000_000).and_then(|micros| micros.to_i64());
        match micros {
            Some(micros) if (0..=MONEY_MAX).contains(&micros) => Ok(Self(micros)),
            _ => Err(refused()),
        }
    }
}

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Decimal::new(self.0, 6).normalize().fmt(f)
    }
}

impl CpuCores {
    /// Reads a JSON number's text.
    ///
    /// # Errors
    ///
    /// [`NumberError::Cores`].
    pub fn parse(text: &str) -> Result<Self, NumberError> {
        match scaled(text, 1_000).and_then(|millis| millis.to_u64()) {
            Some(millis) if (1..=CORES_MAX).contains(&millis) => Ok(Self(Millicores(millis))),
            _ => Err(NumberError::Cores(text.chars().take(40).collect())),
        }
    }

    /// Reads a JSON number's text as the cores of many machines, none included.
    ///
    /// # Errors
    ///
    /// [`NumberError::TotalCores`].
    pub fn parse_total(text: &str) -> Result<Self, NumberError> {
        match scaled(text, 1_000).and_then(|millis| millis.to_u64()) {
            Some(millis) if millis <= TOTAL_CORES_MAX => Ok(Self(Millicores(millis))),
            _ => Err(NumberError::TotalCores(text.chars().take(40).collect())),
        }
    }

    /// Takes what the database holds; a number that cannot be one is shown as 0.
    #[must_use]
    pub fn from_stored(millicores: i64) -> Self {
        Self(Millicores(u64::try_from(millicores).unwrap_or(0)))
    }
}

/// Returns the number times `scale`, if that is a whole number.
fn scaled(text: &str, scale: i64) -> Option<Decimal> {
    // Longer texts would be rounded to 28 digits without a word.
    let number = match text.contains(['e', 'E']) {
        true if text.len() > 24 => return None,
        true => Decimal::from_scientific(text).ok()?,
        false => Decimal::from_str_exact(text).ok()?,
    };
    let scaled = number.checked_mul(Decimal::from(scale))?;
    // The multiplication rounds where 28 digits do not suffice; such numbers are refused too.
    let is_exact = scaled.is_integer() && scaled.checked_div(Decimal::from(scale)) == Some(number);
    is_exact.then_some(scaled)
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl Serialize for CpuCores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.0;
        match (millis % 1_000, u32::try_from(millis)) {
            (0, _) | (_, Err(_)) => serializer.serialize_u64(millis / 1_000),
            (_, Ok(millis)) => serializer.serialize_f64(f64::from(millis) / 1_000.0),
        }
    }
}

impl<'de> Deserialize<'de> for CpuCores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        Self::parse(&number.to_string()).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Money {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(r"^\d+(\.\d{1,6})?$"))
            .description(Some("Decimal text with at most 6 decimals"))
            .into()
    }
}

impl utoipa::ToSchema for Money {}

impl utoipa::PartialSchema for CpuCores {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Number)
            .description(Some("CPU cores, at most 3 decimals"))
            .into()
    }
}

impl utoipa::ToSchema for CpuCores {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn money_survives_being_written_and_read(micros in 0..=MONEY_MAX) {
            let money = Money::from_micros(micros);

            prop_assert_eq!(Money::parse(&money.to_string()), Ok(money));
        }

        #[test]
        fn cores_survive_being_written_and_read(millis in 1..=CORES_MAX) {
            let cores = CpuCores(Millicores(millis));
            let written = serde_json::to_string(&cores).unwrap();

            prop_assert_eq!(serde_json::from_str::<CpuCores>(&written).unwrap(), cores);
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC{0,60}") {
            let _ = (Money::parse(&text), CpuCores::parse(&text));
        }
    }

    #[test]
    fn amounts_and_cores_out_of_range_or_too_fine_are_refused() {
        for bad in ["-1", "", "1.0000001", "1000000.1", "1,5", "abc", "NaN", "1e40", " 1"] {
            assert!(Money::parse(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-0.5", "0.0001", "4096.001", "1e300", "1.00000000000000000000000000001"] {
            assert!(CpuCores::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Money::parse("1.25"), Ok(Money(1_250_000)));
        assert_eq!(CpuCores::parse("0.5"), Ok(CpuCores(Millicores(500))));
        assert_eq!(CpuCores::parse_total("0"), Ok(CpuCores(Millicores(0))));
        assert_eq!(CpuCores::parse_total("1000000"), Ok(CpuCores(Millicores(1_000_000_000))));
        assert!(
            ["-1", "0.0001", "1000000.001"].iter().all(|it| CpuCores::parse_total(it).is_err())
        );
        assert!(serde_json::from_str::<Money>("1.25").is_err(), "a float was taken for money");
    }
}
