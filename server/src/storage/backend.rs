//! What the layers below redb have in common.

/// Closing and locking a file are no business of a layer: those of what is below it.
macro_rules! of_inner {
    () => {
        fn close(&self) -> std::io::Result<()> {
            self.inner.close()
        }

        $crate::storage::backend::of_inner!(@ranges
            try_lock_range: bool,
            try_lock_shared_range: bool,
            lock_range: (),
            lock_shared_range: (),
            unlock_range: (),
            query_lock_range: bool,
        );
    };
    (@ranges $($name:ident: $found:ty,)*) => {$(
        fn $name(
            &self,
            start: std::ops::Bound<u64>,
            end: std::ops::Bound<u64>,
        ) -> Result<$found, redb::BackendError> {
            self.inner.$name(start, end)
        }
    )*};
}

pub(super) use of_inner;
