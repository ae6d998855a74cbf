//! The checksums of files: SHA-256 in large file storage, Git object ids otherwise.

use ring::digest;

/// The sum of a file: its SHA-256, or the id of its Git object.
#[derive(Clone)]
pub struct Sum {
    context: digest::Context,
    /// Git hashes a header with the length first.
    git_length: Option<u64>,
}

impl Sum {
    pub fn sha256() -> Sum {
        Sum { context: digest::Context::new(&digest::SHA256), git_length: None }
    }

    /// The id of a Git object of `length` bytes.
    pub fn git(length: u64) -> Sum {
        let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        context.update(format!("blob {length}\0").as_bytes());
        Sum { context, git_length: Some(length) }
    }

    /// A sum of the same kind without bytes.
    pub fn restarted(&self) -> Sum {
        self.git_length.map_or_else(Sum::sha256, Sum::git)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The sum in hexadecimal digits.
    pub fn hex(&self) -> String {
        let digest = self.context.clone().finish();
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_sha256sum_and_git() {
        let mut sum = Sum::sha256();
        sum.update(b"ab");
        sum.update(b"c");
        assert_eq!(sum.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut git = Sum::git(6);
        git.update(b"lost");
        git = git.restarted();
        git.update(b"hello\n");
        assert_eq!(git.hex(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
