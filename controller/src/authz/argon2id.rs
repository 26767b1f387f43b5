//! One Argon2id hash, in memory that is used again.
//!
//! A hash takes many MiB. Given back to the allocator after each, they would stay in whichever of its
//! arenas the thread belonged to, one copy for each thread that ever hashed; so a few pieces are kept
//! here, as many as hashes run at once, and go from hash to hash.

use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::Result;
use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

const OUTPUT: usize = Params::DEFAULT_OUTPUT_LEN;

/// How hashes are made, and the memory for it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Argon2id {
    params: Params,
    kept: Arc<Mutex<Vec<Vec<Block>>>>,
}

impl Argon2id {
    pub(super) fn new(params: Params) -> Self {
        Self { params, kept: Arc::default() }
    }

    /// Hashes `text` with a new salt.
    pub(super) fn hash(&self, text: &[u8]) -> Result<PasswordHash> {
        let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
        let salt = Salt::generate();
        let argon2 = Argon2::new(algorithm, version, self.params.clone());
        let hash = self.run(&argon2, text, &salt, OUTPUT)?;
        Ok(PasswordHash {
            algorithm: algorithm.ident(),
            version: Some(version.into()),
            params: ParamsString::try_from(&self.params)?,
            salt: Some(salt),
            hash: Some(hash),
        })
    }

    /// Whether `text` gives `hash`, by the parameters that `hash` was made with.
    pub(super) fn fits(&self, text: &[u8], hash: &PasswordHash) -> Result<bool> {
        let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return Ok(false) };
        let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
        let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
        let argon2 = Argon2::new(algorithm, version, Params::try_from(hash)?);
        let given = self.run(&argon2, text, salt, expected.len())?;
        // Outputs are compared in constant time.
        Ok(given == *expected)
    }

    /// Whether `hash` was made with the parameters of hashes that are made now.
    pub(super) fn is_current(&self, hash: &PasswordHash) -> bool {
        let cost = |params: &Params| (params.m_cost(), params.t_cost(), params.p_cost());
        Params::try_from(hash).is_ok_and(|stored| cost(&stored) == cost(&self.params))
    }

    fn run(&self, argon2: &Argon2<'_>, text: &[u8], salt: &Salt, length: usize) -> Result<Output> {
        let mut memory = self.take();
        memory.resize(argon2.params().block_count(), Block::new());
        let mut output = vec![0; length];
        let done = argon2.hash_password_into_with_memory(text, salt, &mut output, &mut memory);
        self.give_back(memory);
        done?;
        Ok(Output::new(&output)?)
    }

    fn take(&self) -> Vec<Block> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Keeps a piece for the next hash; one that an old, larger hash has grown goes.
    fn give_back(&self, memory: Vec<Block>) {
        if memory.len() <= self.params.block_count() {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::{PasswordHasher, PasswordVerifier};

    use super::*;

    fn small(memory: u32) -> Params {
        Params::new(memory, 2, 1, None).unwrap()
    }

    #[test]
    fn memory_that_held_another_hash_gives_the_same_hashes_as_fresh_memory() {
        let argon2id = Argon2id::new(small(64));
        let fresh = Argon2::from(small(64));
        for text in [b"one".as_slice(), b"two", b""] {
            let ours = argon2id.hash(text).unwrap();
            let theirs: PasswordHash = fresh.hash_password(text).unwrap();

            assert!(fresh.verify_password(text, &ours).is_ok());
            assert!(argon2id.fits(text, &theirs).unwrap());
            assert!(!argon2id.fits(b"other", &theirs).unwrap());
            assert!(argon2id.is_current(&ours) && argon2id.is_current(&theirs));
        }
        assert_eq!(argon2id.kept.lock().unwrap().len(), 1, "one piece served them all");
    }

    #[test]
    fn hashes_of_other_costs_are_compared_and_leave_no_larger_memory_behind() {
        let argon2id = Argon2id::new(small(64));
        for other in [32, 512] {
            let hash = Argon2id::new(small(other)).hash(b"one").unwrap();

            assert!(argon2id.fits(b"one", &hash).unwrap());
            assert!(!argon2id.is_current(&hash));
            assert!(argon2id.fits(b"one", &argon2id.hash(b"one").unwrap()).unwrap());
        }
        let kept = argon2id.kept.lock().unwrap();
        assert!(kept.len() == 1 && kept.iter().all(|memory| memory.capacity() <= 64));
    }
}
