//! An enum that knows all of its variants.

/// Declares an enum without data, and `ALL`: every variant in order. `all if COND;` in front: only under that condition.
macro_rules! listed {
    (
        $(all if $condition:meta;)?
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[$doc:meta])* $variant:ident,)+ }
    ) => {
        $(#[$meta])*
        pub enum $name { $($(#[$doc])* $variant,)+ }

        $(#[cfg($condition)])?
        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
        }
    };
}

pub(crate) use listed;
