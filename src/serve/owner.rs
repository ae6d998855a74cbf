//! The client that a request is counted for: requests of one share its part of the slots.

use super::connections::network;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// Whose a request is: its key's, or that of its address's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub u64);

impl Owner {
    /// By the key, or without one by the network of the address.
    pub fn of(key: Option<&str>, address: Option<IpAddr>) -> Owner {
        let mut hasher = DefaultHasher::new();
        match key {
            Some(key) => key.hash(&mut hasher),
            None => address.map(network).hash(&mut hasher),
        }
        Owner(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_one_owner_with_all_its_addresses() {
        let of = |key, address: &str| Owner::of(key, Some(address.parse().unwrap()));
        assert_eq!(of(None, "2001:db8::1"), of(None, "2001:db8::2:3"));
        assert_eq!(of(None, "::ffff:192.0.2.1"), of(None, "192.0.2.1"));
        assert_ne!(of(None, "2001:db8::1"), of(None, "2001:db8:0:1::1"));
        assert_ne!(of(None, "192.0.2.1"), of(None, "192.0.2.2"));
        assert_eq!(of(Some("key"), "192.0.2.1"), of(Some("key"), "192.0.2.2"));
    }
}
