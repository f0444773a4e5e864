//! Runs a test on drawn steps, and sees that they met what it is about.

use std::cell::RefCell;
use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// How often what a test is about has happened.
pub(crate) trait Counts: Debug + Default {
    fn add(&mut self, other: &Self);
    fn rarest(&self) -> u64;
}

/// The counts of a test, as its type `Seen`.
macro_rules! seen {
    ($($(#[$doc:meta])* $count:ident),+ $(,)?) => {
        /// How often what the test is about has happened.
        #[derive(Debug, Default)]
        pub(crate) struct Seen {
            $($(#[$doc])* pub(crate) $count: u64),+
        }

        impl crate::models::Counts for Seen {
            fn add(&mut self, other: &Self) {
                $(self.$count += other.$count;)+
            }

            fn rarest(&self) -> u64 {
                [$(self.$count),+].into_iter().min().unwrap_or_default()
            }
        }
    };
}
pub(crate) use seen;

/// Runs a test on so many draws of steps, in which all that it is about happens so many times at least.
pub(crate) fn run<S: Debug, C: Counts>(
    cases: u32,
    steps: &impl Strategy<Value = S>,
    least: u64,
    test: impl Fn(S) -> C,
) {
    let seen = RefCell::new(C::default());
    let config =
        Config { failure_persistence: None, max_shrink_iters: 4_000, ..Config::with_cases(cases) };
    let run = |steps| {
        seen.borrow_mut().add(&test(steps));
        Ok(())
    };
    TestRunner::new(config).run(steps, run).expect("the machine does what it must");
    let seen = seen.into_inner();
    assert!(seen.rarest() >= least, "the test meets what it is about: {seen:?}");
}
