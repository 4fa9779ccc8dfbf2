//! `overlay token`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{
    Context, args,
    format::{Format, FormatArg, ago, json, print, print_rows},
};
use crate::{
    api::{Reference, Request, Token, TokenCreate, TokenInfo},
    model::{ClusterState, Role},
};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    Create(CreateArgs),
    Ls(LsArgs),
    Rm(RmArgs),
}

/// Make a join token: the only time its secret is shown
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay token create --ttl 1h")]
pub(super) struct CreateArgs {
    /// How long it works
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = args::positive_duration)]
    ttl: Duration,
    #[command(flatten)]
    format: FormatArg,
}

/// List the join tokens, without their secrets
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_help = "Example:
  overlay token ls"
)]
pub(super) struct LsArgs {
    #[command(flatten)]
    format: FormatArg,
}

/// Remove join tokens: hosts that joined with them stay
#[derive(Debug, Args)]
#[command(
    visible_alias = "remove",
    after_help = "Example:
  overlay token rm 4f1c0x9k"
)]
pub(super) struct RmArgs {
    /// Ids or beginnings of ids
    #[arg(required = true, value_name = "ID")]
    tokens: Vec<String>,
}

/// Runs a verb.
pub(super) async fn run(context: &Context, command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => create(context, &args).await,
        TokenCommand::Ls(args) => ls(context, &args).await,
        TokenCommand::Rm(args) => rm(context, args).await,
    }
}

/// The command that joins a host with this token.
pub(super) fn join_command(token: &str, manager: impl std::fmt::Display) -> String {
    format!("overlay join --token {token} {manager}")
}

/// A manager's address to join at.
fn manager_of(state: &ClusterState) -> Option<std::net::SocketAddr> {
    let mut managers = state.nodes.values().filter(|node| node.role == Role::Manager);
    managers.find_map(|node| node.api_addr)
}

async fn create(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let request = Request::TokenCreate(TokenCreate { ttl_secs: args.ttl.as_secs().max(1) });
    let token: Token = context.client().call(request).await?;
    if args.format.format == Format::Json {
        return print(&json(&token)?);
    }
    let text = match manager_of(&context.state().await?) {
        Some(manager) => join_command(&token.token, manager),
        None => token.token,
    };
    print(&(text + "\n"))
}

async fn ls(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let tokens: Vec<TokenInfo> = context.client().call(Request::TokenList {}).await?;
    print_rows(args.format.format, &tokens, &["token id", "role", "created", "expires"], |token| {
        let role = match token.role {
            Role::Manager => "manager",
            Role::Agent => "agent",
        };
        vec![token.id.short().to_owned(), role.to_owned(), ago(token.created), ago(token.expires)]
    })
}

async fn rm(context: &Context, args: RmArgs) -> anyhow::Result<()> {
    for reference in args.tokens {
        let request = Request::TokenRemove(Reference { reference });
        let removed: TokenInfo = context.client().call(request).await?;
        print(&format!("{}\n", removed.id))?;
    }
    Ok(())
}
