//! Join tokens: makes, lists, removes and checks them. The store keeps only a hash of the secret.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Plan, Planned};
use crate::{
    api::{ApiError, Reference, Token, TokenCreate, TokenInfo},
    manager::error::{internal, invalid, not_found, unauthenticated},
    model::{Id, Role},
    pki::{self, JoinToken, SecretHash, secret_hash},
    store::{SecretChange, Store},
};

/// Prefix of the tokens' keys among the secrets.
const PREFIX: &str = "token/";
const MAX_TTL_SECS: u64 = 365 * 24 * 3600;
/// How long an expired token is kept, so that a node that uses it gets the reason: it has expired.
const KEEP_EXPIRED: SignedDuration = SignedDuration::from_hours(7 * 24);
const HINT: &str = "make a new one with `overlay token create` on the manager";

/// The stored form of a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::manager) struct Record {
    #[serde(flatten)]
    info: TokenInfo,
    secret_sha256: SecretHash,
}

/// Returns all tokens, in the order of their ids.
pub(in crate::manager) fn load(store: &dyn Store) -> Result<Vec<Record>, ApiError> {
    let parse = |(key, json): (String, Vec<u8>)| {
        serde_json::from_slice(&json).map_err(|e| internal(format!("secret {key}: {e}")))
    };
    store.secrets(PREFIX)?.into_iter().map(parse).collect()
}

/// Returns the public part of the tokens.
pub(in crate::manager) fn list(records: Vec<Record>) -> Vec<TokenInfo> {
    records.into_iter().map(|record| record.info).collect()
}

/// Makes a token, and removes tokens that expired long ago.
pub(in crate::manager) fn create(
    records: &[Record],
    ca_pem: &str,
    request: &TokenCreate,
    now: Timestamp,
) -> Planned<Token> {
    if !(1..=MAX_TTL_SECS).contains(&request.ttl_secs) {
        return Err(invalid(format!(
            "a token cannot last {} seconds: 1 to {MAX_TTL_SECS} (a year) are possible",
            request.ttl_secs
        )));
    }
    let ttl = SignedDuration::from_secs(i64::try_from(request.ttl_secs).map_err(internal)?);
    let expires = now.checked_add(ttl).map_err(internal)?;
    let token = JoinToken {
        ca_digest: pki::fingerprint(ca_pem)?,
        id: Id::random(),
        secret: Id::random().to_string(),
    };
    let info = TokenInfo { id: token.id.clone(), role: Role::Agent, created: now, expires };
    let record = Record { info: info.clone(), secret_sha256: secret_hash(&token.secret) };
    let json = serde_json::to_vec(&record).map_err(internal)?;
    let stale = records.iter().map(|r| &r.info).filter(|i| is_stale(i, now));
    let secrets = std::iter::once(SecretChange::Put(key(&token.id), json))
        .chain(stale.map(|info| SecretChange::Delete(key(&info.id))))
        .collect();
    Ok((Plan { changes: vec![], secrets }, Token { token: token.to_string(), info }))
}

fn is_stale(info: &TokenInfo, now: Timestamp) -> bool {
    now.duration_since(info.expires) > KEEP_EXPIRED
}

fn key(id: &Id) -> String {
    format!("{PREFIX}{id}")
}

/// Removes the token with this id or beginning of an id.
pub(in crate::manager) fn remove(records: &[Record], request: &Reference) -> Planned<TokenInfo> {
    let reference = request.reference.as_str();
    let matches = |r: &&Record| {
        let id = r.info.id.as_str();
        id == reference || reference.len() >= 4 && id.starts_with(reference)
    };
    let found: Vec<&Record> = records.iter().filter(matches).collect();
    let [record] = found[..] else {
        return Err(not_found(format!("there is no token {reference:?}"))
            .hint("`overlay token ls` lists them"));
    };
    let secrets = vec![SecretChange::Delete(key(&record.info.id))];
    Ok((Plan { changes: vec![], secrets }, record.info.clone()))
}

/// Rejects a credential that belongs to no valid token.
pub(in crate::manager) fn check(
    records: &[Record],
    credential: &str,
    now: Timestamp,
) -> Result<(), ApiError> {
    let Some((id, secret)) = JoinToken::split_credential(credential) else {
        return Err(unauthenticated("the join token is malformed").hint(HINT));
    };
    let record = records.iter().find(|record| record.info.id == id);
    // The error does not reveal if the id or the secret is wrong.
    let Some(record) = record.filter(|record| record.secret_sha256.matches(secret)) else {
        return Err(
            unauthenticated("the join token is wrong, or it was removed on the manager").hint(HINT)
        );
    };
    if now >= record.info.expires {
        let expires = record.info.expires.round(jiff::Unit::Second).map_err(internal)?;
        return Err(unauthenticated(format!("the join token expired at {expires}")).hint(HINT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pki::Authority, store::MemoryStore};

    const TTL: u64 = 24 * 3600;

    struct Tokens {
        store: MemoryStore,
        ca_pem: String,
        now: Timestamp,
    }

    impl Tokens {
        fn new() -> Self {
            let ca_pem = Authority::new(&Id::random()).expect("an authority").certificate_pem;
            Self { store: MemoryStore::new(), ca_pem, now: Timestamp::now() }
        }

        fn records(&self) -> Vec<Record> {
            load(&self.store).expect("loaded")
        }

        fn write(&self, plan: Plan) {
            let revision = self.store.load().expect("loaded").revision;
            self.store.commit(revision, plan.changes, plan.secrets).expect("committed");
        }

        fn create(&self, ttl_secs: u64) -> Token {
            let request = TokenCreate { ttl_secs };
            let (plan, token) =
                create(&self.records(), &self.ca_pem, &request, self.now).expect("created");
            self.write(plan);
            token
        }

        fn check(&self, credential: &str, after_secs: i64) -> Result<(), ApiError> {
            let now = self.now + SignedDuration::from_secs(after_secs);
            check(&self.records(), credential, now)
        }
    }

    fn credential(token: &Token) -> String {
        token.token.parse::<JoinToken>().expect("a token").credential()
    }

    #[test]
    fn a_token_works_until_it_expires_and_then_says_so() {
        let tokens = Tokens::new();
        let credential = credential(&tokens.create(TTL));
        let ttl = i64::try_from(TTL).expect("small");
        tokens.check(&credential, 0).expect("valid");
        tokens.check(&credential, ttl - 1).expect("still valid");
        let error = tokens.check(&credential, ttl).expect_err("expired").to_string();
        assert!(error.contains("expired at") && error.contains("overlay token create"), "{error}");
    }

    #[test]
    fn wrong_malformed_and_removed_tokens_are_refused_each_with_a_hint() {
        let tokens = Tokens::new();
        let (one, two) = (tokens.create(TTL), tokens.create(TTL));
        let mixed = format!("{}-{}", one.info.id, Id::random());
        for (credential, why) in
            [(mixed.as_str(), "wrong"), ("", "malformed"), ("a-b", "malformed")]
        {
            let error = tokens.check(credential, 0).expect_err(credential).to_string();
            assert!(error.contains(why) && error.contains("overlay token create"), "{error}");
        }
        let reference = Reference { reference: one.info.id.short().to_owned() };
        let (plan, removed) = remove(&tokens.records(), &reference).expect("removed");
        assert_eq!(removed.id, one.info.id);
        tokens.write(plan);
        assert!(tokens.check(&credential(&one), 0).is_err());
        tokens.check(&credential(&two), 0).expect("the other one stays valid");
        assert!(remove(&tokens.records(), &reference).is_err());
    }

    #[test]
    fn secrets_are_neither_stored_nor_listed() {
        let tokens = Tokens::new();
        let secret = tokens.create(TTL).token.parse::<JoinToken>().expect("a token").secret;
        for (key, value) in tokens.store.secrets("").expect("listed") {
            let text = format!("{key} {}", String::from_utf8(value).expect("JSON"));
            assert!(!text.contains(&secret), "{text}");
        }
        let listed = serde_json::to_string(&list(tokens.records())).expect("JSON");
        assert!(!listed.contains(&secret) && !listed.contains("sha256"), "{listed}");
    }

    #[test]
    fn tokens_that_expired_long_ago_are_forgotten() {
        let mut tokens = Tokens::new();
        tokens.create(60);
        tokens.now += SignedDuration::from_hours(24);
        tokens.create(60);
        assert_eq!(tokens.records().len(), 2);
        tokens.now += SignedDuration::from_hours(7 * 24);
        tokens.create(60);
        assert_eq!(tokens.records().len(), 2);
    }

    #[test]
    fn a_token_lasts_between_a_second_and_a_year() {
        let tokens = Tokens::new();
        for ttl_secs in [0, MAX_TTL_SECS + 1, u64::MAX] {
            let result = create(&[], &tokens.ca_pem, &TokenCreate { ttl_secs }, Timestamp::now());
            assert!(result.is_err(), "{ttl_secs}");
        }
    }
}
