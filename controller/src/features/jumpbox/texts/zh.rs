//! Chinese.

use super::Texts;

pub(super) const TEXTS: Texts = Texts {
    heading: "天启 - {} 的实例",
    columns: ["序号", "名称", "容器", "节点", "状态", "所有者"],
    help: "序号或名称：进入 · 文字：筛选 · 回车：下一页 · r：刷新 · q：退出",
    hint: "下次可直接进入：ssh {}{}+名称@{}",
    none: "您还没有实例。请先在控制台创建，然后按 r。",
    no_match: "没有名称含“{}”的实例。",
    page: "第 {} 页，共 {} 页",
    filter: "筛选：{}",
    prompt: "> ",
    goodbye: "再见。",
    back: "已返回菜单。",
    phases: ["排队中", "创建中", "运行中", "停止中", "已停止", "失败", "删除中", "未知"],
    not_running: "{} 未在运行：{}。",
    ask_start: "现在启动吗？[y/n] ",
    starting: "正在启动；按 Ctrl-C 停止等待。",
    waiting: "{}；按 Ctrl-C 停止等待。",
    still_waiting: "实例尚未运行，请稍后再来。",
    node_offline: "所在节点目前没有响应，请稍后再试。",
    deleting: "该实例正在删除。",
    no_such_instance: "没有这个实例。",
    must_change_password: "请先登录控制台设置您自己的密码。",
    too_many_sessions: "该账号的 SSH 连接数已达上限，请先关闭一个。",
    no_terminal: "菜单需要终端。请指定实例：ssh {}+名称@主机",
    name_an_instance: "请指定实例：{}+名称@主机。您没有与该命令同名的实例。",
    session_ended: "会话已结束，请重新登录。",
    access_ended: "实例已停止，或您已无权进入。",
    node_lost: "与所在节点的连接已中断。",
    failed: "操作未成功：{}",
};
