//! GetCallerIdentity of AWS STS (query protocol, XML answers), so that a client can ask who it is.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::super::failure::Failure;
use super::super::principal::PrincipalRecord;
use super::server::Reply;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// The action of a form-encoded request, if it names one.
pub(crate) fn action(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    text.split('&').find_map(|pair| pair.strip_prefix("Action=")).map(String::from)
}

/// Answers `action` for whoever signed the request.
pub(crate) fn reply(action: &str, principal: Result<&PrincipalRecord, Failure>, account: &str) -> Reply {
    match principal {
        Ok(_) if action != "GetCallerIdentity" => {
            error(400, "InvalidAction", "The embedded KMS knows GetCallerIdentity of AWS STS only.")
        }
        Ok(principal) => identity(principal, account),
        Err(failure) => {
            let code = match failure.code() {
                "UnrecognizedClientException" => "InvalidClientTokenId",
                "InvalidSignatureException" => "SignatureDoesNotMatch",
                "MissingAuthenticationTokenException" => "MissingAuthenticationToken",
                other => other,
            };
            error(403, code, failure.message())
        }
    }
}

fn identity(principal: &PrincipalRecord, account: &str) -> Reply {
    let id = Uuid::new_v4().to_string();
    let body = format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>{}</Arn><UserId>{}</UserId>\
         <Account>{account}</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>{id}</RequestId>\
         </ResponseMetadata></GetCallerIdentityResponse>",
        principal.arn, principal.principal_id
    );
    xml(200, id, body)
}

/// An error of the query protocol.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Reply {
    let id = Uuid::new_v4().to_string();
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    let body = format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{message}</Message></Error><RequestId>{id}</RequestId></ErrorResponse>"
    );
    xml(status, id, body)
}

fn xml(status: u16, request_id: String, body: String) -> Reply {
    Reply { status, content_type: "text/xml", request_id, body: Zeroizing::new(body.into_bytes()) }
}
