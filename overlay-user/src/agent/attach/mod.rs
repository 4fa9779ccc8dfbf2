//! The containers of this host: attaches them, keeps them working, and detaches them.

mod adopt;
mod attachments;
mod containers;
mod detach;
mod drain;
mod heal;
mod health;
mod ready;
mod records;
mod wire;

pub use attachments::Attachments;
