//! Who calls: sts:GetCallerIdentity.

use aws_config::Region;

use super::super::{KmsError, Parties, Principal, Role};
use super::endpoint;
use super::failure::Call;
use super::retry::Tries;
use super::session::{Session, judge};

/// The provisioner retires; the host profile's identity unwraps, or without one the provisioner itself.
pub(super) async fn parties(session: &Session) -> Result<Parties, KmsError> {
    let retiring = caller(session, Role::Provisioner).await?;
    let grantee = match session.connector().settings().host_profile {
        Some(_) => caller(session, Role::Host).await?,
        None => retiring.clone(),
    };
    Ok(Parties { grantee, retiring })
}

async fn caller(session: &Session, role: Role) -> Result<Principal, KmsError> {
    let connector = session.connector();
    let call = Call::new("GetCallerIdentity");
    let config = connector.load(role).await?;
    let place = endpoint::of_sts(connector.settings()).unwrap_or("AWS STS");
    let region = config.region().map_or("", Region::as_ref);
    let client = connector.sts(&config);
    let mut tries = Tries::new(connector.pace());
    let answer = loop {
        let sent = session.witnessed(&call, role, region, Box::pin(client.get_caller_identity().send()));
        match tries.attempt(sent, || call.late(place)).await? {
            Ok(answer) => break answer,
            Err(error) => {
                let (error, again) = judge(error, &call, place);
                tries.pause(error, again).await?;
            }
        }
    };
    let arn = answer.arn().ok_or_else(|| call.nonsense("no Arn"))?;
    Ok(Principal::new(lasting(arn)))
}

/// A session ends and its ARN with it; a grant needs the role behind it. STS does not tell the role's path, so a
/// role with one must be named by the user.
fn lasting(arn: &str) -> String {
    let role = || {
        let (partition, rest) = arn.strip_prefix("arn:")?.split_once(":sts::")?;
        let (account, session) = rest.split_once(":assumed-role/")?;
        let (role, _) = session.split_once('/')?;
        Some(format!("arn:{partition}:iam::{account}:role/{role}"))
    };
    role().unwrap_or_else(|| arn.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_becomes_its_role() {
        for (arn, expected) in [
            ("arn:aws:sts::111122223333:assumed-role/Host/i-0abc", "arn:aws:iam::111122223333:role/Host"),
            ("arn:aws-cn:sts::111122223333:assumed-role/R/a@b", "arn:aws-cn:iam::111122223333:role/R"),
            ("arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:user/alice"),
            ("arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:root"),
            ("arn:aws:sts::111122223333:federated-user/bob", "arn:aws:sts::111122223333:federated-user/bob"),
            ("arn:aws:sts::111122223333:assumed-role/R", "arn:aws:sts::111122223333:assumed-role/R"),
        ] {
            assert_eq!(lasting(arn), expected);
        }
    }
}
