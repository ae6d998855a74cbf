//! Identifies the tenant of a request, and the owner of its files. Tenants share the slots equally.

use super::connections::network;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// A client identified by its API key, or by the network of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub id: u64,
    pub owner: Owner,
}

/// The owner of files: an API key by its hash, which is the same after a restart, or all clients without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(Option<u128>);

impl Owner {
    pub fn of(key: Option<&str>) -> Owner {
        Owner(key.map(|key| {
            let hash = blake3::derive_key("kimi serve: owner of files", key.as_bytes());
            hash.iter().take(16).fold(0, |id, byte| id << 8 | u128::from(*byte))
        }))
    }

    /// Returns a name for the owner's directory, which does not reveal the key.
    pub fn name(self) -> String {
        self.0.map_or("shared".to_owned(), |id| format!("{id:032x}"))
    }
}

impl Tenant {
    /// Derives the tenant from the key, or without one from the network of the address.
    pub fn of(key: Option<&str>, address: Option<IpAddr>) -> Tenant {
        let mut hasher = DefaultHasher::new();
        match key {
            Some(key) => key.hash(&mut hasher),
            None => address.map(network).hash(&mut hasher),
        }
        Tenant { id: hasher.finish(), owner: Owner::of(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_one_tenant_with_all_its_addresses() {
        let of = |key, address: &str| Tenant::of(key, Some(address.parse().unwrap()));
        assert_eq!(of(None, "2001:db8::1"), of(None, "2001:db8::2:3"));
        assert_eq!(of(None, "::ffff:192.0.2.1"), of(None, "192.0.2.1"));
        assert_ne!(of(None, "2001:db8::1"), of(None, "2001:db8:0:1::1"));
        assert_ne!(of(None, "192.0.2.1"), of(None, "192.0.2.2"));
        assert_eq!(of(Some("key"), "192.0.2.1"), of(Some("key"), "192.0.2.2"));
    }
}
