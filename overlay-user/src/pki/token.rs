//! Join tokens: `OVLTKN-1-<SHA-256 of the CA's certificate>-<token id>-<secret>`.
//!
//! The joining node uses the digest to verify the manager before it sends the secret. Managers keep
//! only a hash of the secret. The secret has 129 random bits, so a fast hash is enough.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::hex;
use crate::model::Id;

const PREFIX: &str = "OVLTKN";
const VERSION: &str = "1";

/// A join token. The administrator gives it to a new node.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA certificate's DER, in lower-case hexadecimal.
    pub ca_digest: String,
    /// Id of the token.
    pub id: Id,
    /// The secret.
    pub secret: String,
}

/// The text is not a join token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: {0}")]
pub struct TokenError(&'static str);

impl JoinToken {
    /// Returns the part that the new node sends: `ID-SECRET`.
    pub fn credential(&self) -> String {
        format!("{}-{}", self.id, self.secret)
    }

    /// Splits a credential made by [`Self::credential`].
    pub fn split_credential(credential: &str) -> Option<(Id, &str)> {
        let (id, secret) = credential.split_once('-')?;
        (is_part(id) && is_part(secret)).then(|| (Id::from_text(id), secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}-{}", self.ca_digest, self.id, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        match parts[..] {
            [PREFIX, VERSION, digest, id, secret] => {
                if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(TokenError("its third part is not the digest of a CA"));
                }
                if !is_part(id) || !is_part(secret) {
                    return Err(TokenError("its last two parts must have 25 letters and digits"));
                }
                Ok(Self {
                    ca_digest: digest.to_ascii_lowercase(),
                    id: Id::from_text(id),
                    secret: secret.to_owned(),
                })
            }
            [PREFIX, VERSION, ..] => {
                Err(TokenError("it does not have five parts; was all of it copied?"))
            }
            [PREFIX, _, ..] => Err(TokenError("its version is not 1")),
            _ => Err(TokenError("it does not start with OVLTKN-1-")),
        }
    }
}

/// Returns true if the text has the form of an [`Id::random`].
fn is_part(text: &str) -> bool {
    text.len() == 25 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// The stored form of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(String);

impl SecretHash {
    /// Compares in constant time.
    pub fn matches(&self, secret: &str) -> bool {
        self.0.as_bytes().ct_eq(secret_hash(secret).0.as_bytes()).into()
    }
}

/// Returns the stored form of a secret.
pub fn secret_hash(secret: &str) -> SecretHash {
    SecretHash(hex(&Sha256::digest(secret.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            ca_digest: "0123456789abcdef".repeat(4),
            id: Id::random(),
            secret: Id::random().to_string(),
        }
    }

    #[test]
    fn a_token_reads_back_from_its_text() {
        let token = token();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        let credential = token.credential();
        let (id, secret) = JoinToken::split_credential(&credential).expect("both parts");
        assert_eq!((id, secret), (token.id.clone(), token.secret.as_str()));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_no_token_is_refused_with_the_reason() {
        let text = token().to_string();
        for (text, why) in [
            ("", "does not start with"),
            ("SWMTKN-1-a-b", "does not start with"),
            (&text[1..], "does not start with"),
            (&text.replacen("-1-", "-2-", 1), "version"),
            (&text[..text.len() - 1], "25 letters"),
            (&text[..text.len() - 30], "five parts"),
            (&format!("{text}-x"), "five parts"),
            (&text.replacen("0123", "012x", 1), "digest"),
        ] {
            let error = text.parse::<JoinToken>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(JoinToken::split_credential("x"), None);
    }

    #[test]
    fn only_the_secret_itself_matches_its_hash() {
        let hash = secret_hash("right");
        assert!(hash.matches("right"));
        assert!(!hash.matches("wrong") && !hash.matches("") && !hash.matches(&hash.0));
    }
}
