//! Quotas: whatever the numbers are, the sum stays within the limit.

use proptest::option;
use proptest::prelude::*;

use crate::quota::{Amounts, Each, Excess, Limits, Quantity, Setting, Settings, check};

/// Small numbers, where limits are met exactly, and the largest ones.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..8, 1 => (u64::MAX - 4)..=u64::MAX, 1 => any::<u64>()]
}

fn each<T: std::fmt::Debug + Copy>(
    of: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Each<T>> {
    (of.clone(), of.clone(), of.clone(), of.clone(), of.clone(), of).prop_map(
        |(instances, gpus, gpu_memory_mib, cpu_millicores, memory_mib, disk_gib)| Each {
            instances,
            gpus,
            gpu_memory_mib,
            cpu_millicores,
            memory_mib,
            disk_gib,
        },
    )
}

fn amounts() -> impl Strategy<Value = Amounts> {
    each(number().boxed())
}

fn limits() -> impl Strategy<Value = Limits> {
    each(option::of(number()).boxed())
}

fn settings() -> impl Strategy<Value = Settings> {
    let setting = prop_oneof![Just(Setting::Unlimited), number().prop_map(Setting::AtMost)];
    each(option::of(setting).boxed())
}

fn one(quantity: Quantity, amount: u64) -> Amounts {
    let mut amounts = Amounts::default();
    match quantity {
        Quantity::Instances => amounts.instances = amount,
        Quantity::Gpus => amounts.gpus = amount,
        Quantity::GpuMemory => amounts.gpu_memory_mib = amount,
        Quantity::Cpu => amounts.cpu_millicores = amount,
        Quantity::Memory => amounts.memory_mib = amount,
        Quantity::Disk => amounts.disk_gib = amount,
    }
    amounts
}

fn some(amounts: Amounts) -> Limits {
    amounts.with(&amounts, |amount, _| Some(amount))
}

proptest! {
    #[test]
    fn what_is_let_through_never_takes_a_sum_over_its_limit(
        limits in limits(), used in amounts(), wanted in amounts()
    ) {
        let refused = check(&limits, &used, &wanted).err().unwrap_or_default();
        for quantity in Quantity::ALL {
            let (used, wanted) = (used.of(quantity), wanted.of(quantity));
            let sum = u128::from(used) + u128::from(wanted);
            let is_over = limits.of(quantity).is_some_and(|it| wanted > 0 && sum > u128::from(it));
            let excess = refused.iter().find(|excess| excess.quantity == quantity);
            prop_assert_eq!(excess.is_some(), is_over);
            if let Some(Excess { limit, over, .. }) = excess {
                let exact = sum - u128::from(*limit);
                prop_assert_eq!(u128::from(*over), exact.min(u128::from(u64::MAX)));
            }
        }
    }

    #[test]
    fn taking_one_after_the_other_never_ends_above_the_limit(
        limit in number(), steps in prop::collection::vec(number(), 0..20)
    ) {
        let limits = some(one(Quantity::Gpus, limit));
        let mut used = Amounts::default();
        for step in steps {
            let wanted = one(Quantity::Gpus, step);
            if check(&limits, &used, &wanted).is_ok() {
                used = used.plus(&wanted);
            }
        }
        prop_assert!(used.gpus <= limit);
    }

    #[test]
    fn whoever_uses_or_wants_less_or_may_have_more_is_not_refused_for_it(
        limits in limits(), used in amounts(), wanted in amounts(), less in amounts(), more in amounts()
    ) {
        if check(&limits, &used, &wanted).is_ok() {
            let smaller = used.with(&less, u64::saturating_sub);
            prop_assert!(check(&limits, &smaller, &wanted).is_ok());
            let fewer = wanted.with(&less, u64::saturating_sub);
            prop_assert!(check(&limits, &used, &fewer).is_ok());
            let larger = limits.with(&more, |limit, more| limit.map(|it| it.saturating_add(more)));
            prop_assert!(check(&larger, &used, &wanted).is_ok());
        }
    }

    #[test]
    fn asking_for_nothing_is_never_refused(limits in limits(), used in amounts()) {
        prop_assert!(check(&limits, &used, &Amounts::default()).is_ok());
    }

    #[test]
    fn a_setting_of_ones_own_counts_and_the_one_below_fills_the_gaps(
        own in settings(), below in settings()
    ) {
        let limits = own.over(&below);
        for quantity in Quantity::ALL {
            let expected = match (own.of(quantity), below.of(quantity)) {
                (Some(Setting::AtMost(limit)), _) | (None, Some(Setting::AtMost(limit))) => Some(limit),
                (Some(Setting::Unlimited), _) | (None, Some(Setting::Unlimited) | None) => None,
            };
            prop_assert_eq!(limits.of(quantity), expected);
        }
    }

    #[test]
    fn sums_and_multiples_of_any_numbers_do_not_overflow(a in amounts(), b in amounts(), n in number()) {
        let sum = a.plus(&b.times(n));
        for quantity in Quantity::ALL {
            let exact = u128::from(b.of(quantity)) * u128::from(n) + u128::from(a.of(quantity));
            prop_assert_eq!(u128::from(sum.of(quantity)), exact.min(u128::from(u64::MAX)));
        }
    }
}

#[test]
fn a_refusal_names_each_limit_and_by_how_much() {
    let limits = Limits {
        instances: Some(5),
        gpus: Some(1),
        cpu_millicores: Some(4_000),
        ..Limits::default()
    };
    let used = Amounts { instances: 5, gpus: 1, cpu_millicores: 3_500, ..Amounts::default() };
    let wanted = Amounts { instances: 1, cpu_millicores: 1_250, gpus: 2, disk_gib: 10, ..used };

    let refused = check(&limits, &used, &Amounts { memory_mib: 0, ..wanted }).unwrap_err();

    let told: Vec<String> = refused.iter().map(Excess::to_string).collect();
    assert_eq!(
        told,
        [
            "5 instances allowed, 5 in use, 1 more needed, 1 too many",
            "1 whole GPU allowed, 1 in use, 2 more needed, 2 too many",
            "4 CPU cores allowed, 3.5 in use, 1.25 more needed, 0.75 too many",
        ]
    );
}

#[test]
fn too_much_of_one_thing_is_no_reason_to_refuse_another() {
    let limits = Limits { gpus: Some(1), instances: Some(9), ..Limits::default() };
    let used = Amounts { gpus: 4, instances: 4, ..Amounts::default() };

    assert!(check(&limits, &used, &one(Quantity::Instances, 1)).is_ok());
    assert!(check(&limits, &used, &one(Quantity::Gpus, 1)).is_err());
}

#[test]
fn no_limit_lets_the_largest_numbers_through() {
    let most = Amounts::default().with(&Amounts::default(), |_, _| u64::MAX);

    assert!(Limits::default().is_unlimited());
    assert!(check(&Limits::default(), &most, &most).is_ok());
    assert!(check(&some(most), &Amounts::default(), &most).is_ok());
    assert_eq!(check(&some(most), &most, &most).unwrap_err().len(), 6);
}
