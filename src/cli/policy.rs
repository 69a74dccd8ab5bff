//! `sealblk policy`: what provisioner and host have to be allowed.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Failure, output};
use crate::kms::policy::{Permission, Policy, Source, Subjects, is_service};
use crate::kms::{EncryptionContext, KeyArn, Principal};

const EXAMPLES: &str = "\
The host's policy allows nothing: its grant gives it Decrypt. It denies everything else, so leave it out where the \
host has other work with KMS keys.

Not printed, since no call of sealblk could meet them: kms:ViaService (calls that an AWS service makes for its user) \
and kms:GrantIsForAWSResource (services integrated with AWS KMS).

Examples:
  sealblk policy --key arn:aws:kms:us-east-1:111122223333:key/ID \\
      --provisioner arn:aws:iam::111122223333:role/Scheduler \\
      --host arn:aws:iam::111122223333:role/Worker --context team=data
  sealblk policy ... --only key > key.json && aws kms put-key-policy --key-id ID --policy file://key.json";

/// Prints least-privilege policies as JSON: `keyPolicy`, `provisionerPolicy`, `hostPolicy`.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PolicyArgs {
    /// The KMS key
    #[arg(long, value_name = "ARN")]
    key: String,

    /// Who makes wrapped keys and grants: a user or role, or an AWS service (NAME.amazonaws.com)
    #[arg(long, value_name = "ARN")]
    provisioner: String,

    /// Who unwraps: a user or role
    #[arg(long, value_name = "ARN")]
    host: String,

    /// Who alone rules the key [default: whom the account's own policies name, as AWS KMS has it]
    #[arg(long, value_name = "ARN")]
    admin: Option<String>,

    /// A pair of the encryption context that every volume has, KEY=VALUE (repeatable) or KEY:VALUE,KEY:VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    context: Vec<String>,

    /// Bind the key policy to this resource by aws:SourceArn and aws:SourceAccount, which calls have only when the
    /// provisioner is an AWS service
    #[arg(long, value_name = "ARN")]
    source_arn: Option<String>,

    /// Allow moving wrapped keys from and to this KMS key
    #[arg(long)]
    rewrap: bool,

    /// Allow taking volumes over from another provider (kms:Encrypt)
    #[arg(long)]
    from_other_provider: bool,

    /// Print this policy alone, ready to be put
    #[arg(long, value_name = "WHICH")]
    only: Option<Which>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Key,
    Provisioner,
    Host,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policies {
    key_policy: Policy,
    /// None for a service.
    provisioner_policy: Option<Policy>,
    host_policy: Policy,
}

pub(super) fn policy(args: &PolicyArgs, json: bool) -> Result<ExitCode, Failure> {
    let subjects = args.subjects()?;
    let permissions = args.permissions();
    let admin = args.admin.as_deref().map(|arn| principal("--admin", arn)).transpose()?;
    let source = args.source(&subjects)?;
    let all = Policies {
        key_policy: subjects.key_policy(&permissions, admin.as_ref(), source.as_ref()),
        provisioner_policy: subjects.provisioner_policy(&permissions),
        host_policy: subjects.host_policy(),
    };
    output::line(match args.only {
        None => text(&all, json),
        Some(Which::Key) => text(&all.key_policy, json),
        Some(Which::Host) => text(&all.host_policy, json),
        Some(Which::Provisioner) => match &all.provisioner_policy {
            Some(policy) => text(policy, json),
            None => {
                let why = "--only provisioner: an AWS service has no policy of its own; the key's names it";
                return Err(Failure::Usage(why.into()));
            }
        },
    });
    Ok(ExitCode::SUCCESS)
}

/// One line for `--json`, else for people to read.
fn text(policy: &impl Serialize, json: bool) -> String {
    let text = if json { serde_json::to_string(policy) } else { serde_json::to_string_pretty(policy) };
    // Strings, lists and maps: nothing that JSON cannot hold.
    text.unwrap_or_default()
}

impl PolicyArgs {
    fn subjects(&self) -> Result<Subjects, Failure> {
        let mut context = EncryptionContext::default();
        for text in &self.context {
            context.insert_text(text)?;
        }
        let provisioner = Principal::new(&self.provisioner);
        let provisioner = if is_service(&provisioner) && !self.provisioner.contains([':', '*', '/']) {
            provisioner
        } else {
            principal("--provisioner", &self.provisioner)?
        };
        let host = principal("--host", &self.host)?;
        if provisioner == host {
            let why = "--provisioner and --host are the same: what the one needs is denied to the other";
            return Err(Failure::Usage(why.into()));
        }
        Ok(Subjects { key: key(&self.key)?, provisioner, host, context })
    }

    fn permissions(&self) -> Vec<Permission> {
        let rewrap = self.rewrap.then_some(Permission::Rewrap);
        let import = self.from_other_provider.then_some(Permission::Import);
        Permission::ALWAYS.into_iter().chain(rewrap).chain(import).collect()
    }

    fn source(&self, subjects: &Subjects) -> Result<Option<Source>, Failure> {
        let Some(arn) = &self.source_arn else { return Ok(None) };
        if !is_service(&subjects.provisioner) {
            let why = "--source-arn: calls have aws:SourceArn only if an AWS service makes them, and --provisioner is \
                       none; it would lock the provisioner out";
            return Err(Failure::Usage(why.into()));
        }
        match parts(arn)[..] {
            ["arn", partition, service, _, account, resource]
                if !partition.is_empty()
                    && !service.is_empty()
                    && is_account(account)
                    && !resource.is_empty() =>
            {
                Ok(Some(Source { arn: arn.clone(), account: account.into() }))
            }
            _ => Err(bad("--source-arn", arn, "a resource with its account")),
        }
    }
}

fn parts(arn: &str) -> Vec<&str> {
    arn.splitn(6, ':').collect()
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn bad(flag: &str, arn: &str, of: &str) -> Failure {
    Failure::Usage(format!("{flag} {arn:?} is not the ARN of {of}"))
}

fn key(arn: &str) -> Result<KeyArn, Failure> {
    match parts(arn)[..] {
        ["arn", partition, "kms", region, account, resource]
            if !partition.is_empty()
                && !region.is_empty()
                && is_account(account)
                && resource
                    .strip_prefix("key/")
                    .is_some_and(|id| !id.is_empty() && !id.contains(['*', '?'])) =>
        {
            Ok(KeyArn::new(arn))
        }
        _ => Err(bad(
            "--key",
            arn,
            "a KMS key (arn:aws:kms:REGION:ACCOUNT:key/ID; policies cannot name aliases)",
        )),
    }
}

fn principal(flag: &str, arn: &str) -> Result<Principal, Failure> {
    match parts(arn)[..] {
        ["arn", partition, "iam", "", account, resource]
            if !partition.is_empty()
                && is_account(account)
                && ["user/", "role/"]
                    .iter()
                    .any(|kind| resource.len() > kind.len() && resource.starts_with(kind))
                && !arn.contains(['*', '?', '$', ' ']) =>
        {
            Ok(Principal::new(arn))
        }
        _ => Err(bad(flag, arn, "a user or role (arn:aws:iam::ACCOUNT:role/NAME)")),
    }
}
