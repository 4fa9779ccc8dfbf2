//! Rules for names.

/// A name that is not allowed, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid {what} name {name:?}: use 1 to 63 letters, digits, '-', '_' or '.', starting and \
     ending with a letter or digit"
)]
pub struct InvalidName {
    what: &'static str,
    name: String,
}

/// Checks the name of a `what` (network, service, container, node). A valid name fits a DNS label,
/// or has the underscore and the dot that Docker also allows.
///
/// # Errors
/// [`InvalidName`] quotes the name and explains the rules.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = name.as_bytes();
    let ends_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric);
    if ends_well && bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) {
        Ok(())
    } else {
        Err(InvalidName { what, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers_and_services_pass() {
        for name in ["a", "etcd", "mysql-galera", "hello.1", "my_net", "0x"] {
            assert_eq!(check_name("service", name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_break_dns_keys_or_terminals_are_refused() {
        let long = "x".repeat(64);
        for name in ["", "-a", "a-", ".", "a/b", "a b", "ä", "a\n", "a\u{1b}[0m", long.as_str()] {
            assert!(check_name("service", name).is_err(), "{name:?}");
        }
    }
}
